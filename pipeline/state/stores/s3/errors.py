"""Errors of S3: which are transient, and what to tell a person about each."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError


class NotFromS3(ConnectionError):
    """An answer without a field that S3 always sends: a proxy's page, or half of an answer."""


# Everything that a request can raise.
ERRORS = (BotoCoreError, ClientError, ResponseParserError, HTTPError, ConnectionError)

_NETWORK = (HTTPClientError, NoConnection, HTTPError, ConnectionError)
_DAMAGED_ON_THE_WAY = (IncompleteReadError, FlexibleChecksumError, ResponseParserError)
_LOGIN_EXPIRED = (SSOError, TokenRetrievalError)
_CREDENTIALS_DOWN = (CredentialRetrievalError, MetadataRetrievalError)
_WRONG_CONFIGURATION = (ConfigNotFound, ConfigParseError, ProfileNotFound)

# The last two are of an AWS_CA_BUNDLE that is missing or has no certificate.
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "[Errno 2]", "[X509")
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
CLOCK = {"RequestTimeTooSkewed"}
_PASSING = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
_ANOTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
# MinIO has its own names for a full bucket and a full disk.
_NO_ROOM = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"}
_SUSPENDED = {"AccountProblem", "AllAccessDisabled", "NotSignedUp", "UserSuspended"}
_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
# What a store needs, and who only reads.
ALL_RIGHTS = (
    "s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket, s3:ListBucketMultipartUploads "
    "and s3:AbortMultipartUpload"
)
READING = "s3:GetObject and s3:ListBucket"


def _is_untrusted(error: Exception) -> bool:
    """Return whether the service's certificate was refused. Other TLS errors may pass."""
    return isinstance(error, SSLError) and any(sign in str(error) for sign in _UNTRUSTED)


def _answer(error: Exception) -> Mapping[str, Any]:
    """Return the answer of the store; empty if the error is none."""
    return error.response if isinstance(error, ClientError) else {}


def code_of(error: Exception) -> str:
    """Return S3's name for the error, such as `NoSuchKey`; empty if it is not an answer of the
    store."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: Exception) -> int:
    """Return the HTTP status of the answer; 0 if the error is not an answer of the store."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_unreadable(code: str, status: int) -> bool:
    """Return whether the answer gives no reason: its body was cut off, or is not from S3."""
    return 400 <= status < 500 and code == str(status)


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later, with credentials read again."""
    code, status = code_of(error), status_of(error)
    if code or status:
        passing = status in (408, 429) or code in _PASSING | EXPIRED | CLOCK
        return passing or _is_unreadable(code, status) or (status >= 500 and status != 501)
    passing = isinstance(error, (*_NETWORK, *_DAMAGED_ON_THE_WAY, *_CREDENTIALS_DOWN))
    return passing and not _is_untrusted(error)


def is_outage(error: Exception) -> bool:
    """Return whether the error passes by itself or with new credentials, though perhaps not
    soon."""
    unreadable = _is_unreadable(code_of(error), status_of(error))
    return not unreadable and (is_transient(error) or isinstance(error, _LOGIN_EXPIRED))


def refuses_checksums(error: Exception) -> bool:
    """Return whether the service refused a request because of a checksum's header, as Backblaze
    B2 does. Some services do not name the header that they can't handle."""
    message = str(_answer(error).get("Error", {}).get("Message")).lower()
    named = "checksum" in message or (code_of(error) == "NotImplemented" and "header" in message)
    return named and status_of(error) in (400, 501) and not is_transient(error)


def retry_after(error: Exception) -> str | None:
    """Return the Retry-After header of the answer."""
    headers: Mapping[str, str] = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("retry-after")


def explain(error: Exception, bucket: str, endpoint: str, rights: str = ALL_RIGHTS) -> str:
    """Return the reason, with the fix. The reason contains nothing that was sent to the store."""
    name = type(error).__name__
    match error:
        case ClientError():
            return _explain_answer(error, bucket, rights)
        case NoCredentialsError():
            return f"no credentials were found; {_KEYS}"
        case PartialCredentialsError():
            return f"the credentials are incomplete; {_KEYS}"
        case _ if isinstance(error, _LOGIN_EXPIRED):
            return f"the login has expired or is missing ({name}); run `aws sso login`"
        case _ if isinstance(error, _CREDENTIALS_DOWN):
            return f"the credentials could not be fetched ({name}); {_KEYS}"
        case _ if isinstance(error, _WRONG_CONFIGURATION):
            return f"{error}; check AWS_PROFILE and ~/.aws/config, or run `aws configure`"
        case SSLError() if _is_untrusted(error):
            return (
                f"this machine does not trust the certificate of {endpoint}; set AWS_CA_BUNDLE to "
                "the file with the certificate of the authority that signed it"
            )
        case NotFromS3():
            return (
                f"several responses from {endpoint} did not come from S3, or not whole (no "
                f"{error}); check AWS_ENDPOINT_URL, and any proxy on the way"
            )
        case _ if isinstance(error, _DAMAGED_ON_THE_WAY):
            return f"several responses from {endpoint} were corrupted ({name}); check the network"
        case _ if isinstance(error, _NETWORK):
            return (
                f"{endpoint} sent no complete response ({name}); check the network and the endpoint"
            )
    return f"{name}: {error}"


def _explain_answer(error: ClientError, bucket: str, rights: str) -> str:
    code, status = code_of(error), status_of(error)
    message = str(error.response.get("Error", {}).get("Message") or "").rstrip(". ")
    detail = f": {message}" if message else ""
    match code:
        case "NoSuchBucket":
            return f"bucket {bucket} does not exist; create it with `aws s3 mb s3://{bucket}`"
        case "InvalidAccessKeyId":
            return f"the store does not recognize the access key; {_KEYS}"
        case "SignatureDoesNotMatch":
            return f"the secret key does not belong to the access key; {_KEYS}"
        case "InvalidToken":
            return f"the session token is not valid (AWS_SESSION_TOKEN); {_KEYS}"
        case "NotImplemented":
            return f"the store can't do that ({code}{detail})"
        case _ if code in EXPIRED:
            return (
                "the credentials have expired; put new ones into ~/.aws/credentials (a running job "
                "reads this file again), or set them and run the same command again"
            )
        case _ if code in CLOCK:
            return "this machine's clock is wrong; set it (timedatectl set-ntp true)"
        case _ if code in _ANOTHER_REGION:
            return f"bucket {bucket} is in a different region; set AWS_REGION to that region"
        case _ if code in _NO_ROOM:
            return (
                f"there is no room left in bucket {bucket} or its account ({code}{detail}); delete "
                "what nobody needs, or have the quota raised"
            )
        case _ if code in _SUSPENDED:
            return f"the service has suspended this account ({code}{detail}); ask the service why"
        case _ if status == 403:
            return (
                f"access was denied ({code}{detail}); the credentials need {rights} on bucket "
                f"{bucket}"
            )
        case _ if _is_unreadable(code, status):
            return (
                f"the store repeatedly answered {status} without a reason; check AWS_ENDPOINT_URL"
            )
    return f"the store answered {status} {code}{detail}"
