"""Errors of the Hub: which are transient, and what to tell a person about each.

A run's store, a source that is read and a model that is published need different advice: `explain`,
`explain_reading` and `explain_publishing`.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from json import JSONDecodeError

import httpx
from huggingface_hub import get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pion.errors import BadInput, PionError, causes
from pipeline.state.stores.hub import TOKENS_PAGE

# The Hub gives these reasons in words only, all with status 403.
_FULL = re.compile(r"(?i)storage.*(limit|quota|exceed)|(limit|quota|exceed).*storage")
_SUSPENDED = re.compile(r"(?i)suspended|banned|account.*(disabled|blocked)")


# How an outage ends, whatever was being done.
AGAIN = " Nothing is lost. Run the same command again once the Hub answers."


class NotFromTheHub(ConnectionError):
    """An answer that lacks what the Hub always sends: a proxy's page, or half of an answer."""


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Raise `NotFromTheHub` if the client can't read an answer in the block. The client trusts
    that the answer has every field."""
    try:
        yield
    except (JSONDecodeError, AssertionError, AttributeError, LookupError, TypeError) as error:
        if isinstance(error, HfHubHTTPError):
            raise
        raise NotFromTheHub(type(error).__name__) from None


# Everything that a request can raise. An `HfHubHTTPError` is an `OSError`. A `RuntimeError` (LFS,
# Xet) says why an upload stopped. A `ValueError` has the LFS service's message.
ERRORS = (OSError, httpx.TransportError, RuntimeError, ValueError)


def cause_of(error: BaseException) -> BaseException:
    """Return the error behind the client's wrappers."""
    cause: BaseException | None = error
    hub_errors = HfHubHTTPError | httpx.TransportError | OfflineModeIsEnabled
    while cause is not None and not isinstance(cause, hub_errors):
        cause = cause.__cause__
    return error if cause is None else cause


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the answer; 0 if the error is not an answer of the Hub."""
    cause = cause_of(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0


def _is_untrusted(error: BaseException) -> bool:
    """Return whether the Hub's certificate was refused."""
    return isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if status := status_of(error):
        return status in (408, 409, 429) or status >= 500
    cause = cause_of(error)
    passing = isinstance(cause, httpx.TransportError | ConnectionError | TimeoutError)
    return passing and not (isinstance(cause, OfflineModeIsEnabled) or _is_untrusted(cause))


def is_outage(error: Exception) -> bool:
    """Return whether the error passes by itself or with a new token, though perhaps not soon."""
    cause = cause_of(error)
    passing = is_transient(error) or status_of(error) == 401 or isinstance(cause, RuntimeError)
    return passing and not isinstance(cause, RepositoryNotFoundError)


def retry_after(error: Exception) -> str | None:
    """Return the Retry-After header of the answer."""
    cause = cause_of(error)
    return cause.response.headers.get("Retry-After") if isinstance(cause, HfHubHTTPError) else None


def explain(error: Exception, url: str, create: str) -> str:
    """Return the reason, with the fix. `create` is the command that creates the repository.

    The reason contains nothing that was sent to the Hub, and no addresses, because they may be
    signed.
    """
    cause = cause_of(error)
    match cause:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE"
        case GatedRepoError():
            return f"access to {url} has to be granted first; request access on its page on the Hub"
        case DisabledRepoError():
            return f"the Hub has disabled {url}; its page on the Hub says why"
        case RepositoryNotFoundError():
            return (
                f"there is no such repository, or {_token()} has no access to it; create it with "
                f"`{create}`, or set HF_TOKEN to a token with write access ({TOKENS_PAGE})"
            )
        case RevisionNotFoundError():
            return (
                "the repository has no branch main; create the branch on the Hub, or use a new "
                "repository"
            )
        case HfHubHTTPError():
            return _explain_answer(cause)
        case NotFromTheHub():
            return (
                "several responses did not come from the Hub, or not whole; check HF_ENDPOINT, and "
                "any proxy on the way"
            )
        case httpx.ConnectError() if _is_untrusted(cause):
            return (
                "this machine does not trust the Hub's certificate; set SSL_CERT_FILE to the file "
                "with the certificate of the authority that signed it"
            )
        case httpx.TimeoutException():
            return f"the Hub does not answer ({type(cause).__name__}); check the network"
        case httpx.TransportError() | ConnectionError():
            return f"the Hub sent no complete response ({type(cause).__name__}); check the network"
        case RuntimeError():  # its text may contain a signed address
            return "the upload was interrupted; check the network"
        case OSError() if cause.strerror:
            return cause.strerror
    return str(cause).strip().partition("\n")[0] or type(cause).__name__


def _explain_answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    message = (error.server_message or "").strip().partition("\n")[0].rstrip(". ")
    detail = f" ({message})" if message else ""
    match status:
        case 401:
            return (
                f"the Hub does not accept {_token()}; run `hf auth login` (a running job picks up "
                "the new login unless HF_TOKEN is set), or set HF_TOKEN to a new token "
                f"({TOKENS_PAGE})"
            )
        case 403 if _FULL.search(message):
            return f"there is no room left{detail}; delete what nobody needs, or get more storage"
        case 403 if _SUSPENDED.search(message):
            return f"the Hub has suspended this account{detail}; ask the Hub why"
        case 403:
            return (
                f"the Hub denied access{detail}; set HF_TOKEN to a token with write access "
                f"({TOKENS_PAGE})"
            )
        case 429:
            return f"the Hub's rate limit is reached{detail}; the limit resets within the hour"
        case _ if status >= 500 or status == 408:
            return f"the Hub answered {status}{detail}"
    return f"the Hub refused the request with {status}{detail}"


def _token() -> str:
    if get_token() is None:
        return "a request without a token"
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`"


# ---------------------------------------------------------------- sources that are read


def explain_reading(
    error: BaseException, repository: str, file: str | None, page: str
) -> PionError | None:
    """Return the message for an error of a Hub client, or None if it is not about the Hub.

    `page` is the address of the repository's page, where its terms are accepted.
    """
    name = f"{repository}, file {file}" if file else repository
    chain = list(causes(error))
    for cause in chain:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        match cause:
            case RevisionNotFoundError():
                return BadInput(f"{name}: there is no such revision")
            case RemoteEntryNotFoundError():
                return BadInput(f"{name}: there is no such file")
            case GatedRepoError():
                return BadInput(f"{repository}: it is gated. {_terms_advice(page)}")
            case HFValidationError():
                return BadInput(f"{name}: not the name of a Hub repository (user/name): {cause}")
            case RepositoryNotFoundError():
                hidden = get_token() is None or status == 401
                private = f" If the repository is private: {_token_advice()}" if hidden else ""
                return BadInput(f"{name}: there is no such repository; check its name.{private}")
            case _ if status in (401, 403):
                return BadInput(f"{name}: the Hub denied access ({status}). {_token_advice()}")
    if any("scripts are no longer supported" in str(cause) for cause in chain):
        return BadInput(f"{name}: it is a program that writes data, and Pion does not run it")
    if any(type(cause).__name__ == "DatasetNotFoundError" for cause in chain):
        return BadInput(f"{name}: there is no such data set, or it is private. {_token_advice()}")
    for cause in chain:
        first_line = (str(cause) or type(cause).__name__).strip().partition("\n")[0]
        match cause:
            case HTTPError() | LocalEntryNotFoundError() | ConnectionError():
                return PionError(
                    f"{name}: the Hub can't be reached or does not answer ({first_line}).{AGAIN}"
                )
            case ValueError() | FileNotFoundError():
                # datasets' own complaints: unknown split or subset, no readable files
                return BadInput(f"{name}: {first_line}")
    return None


def _token_advice() -> str:
    if get_token() is None:
        return (
            f"No Hub token was found. Create a token at {TOKENS_PAGE}. "
            "Then run `export HF_TOKEN=hf_…` or `hf auth login`"
        )
    return (
        f"The token from {_token_source()} has no access. Ask for access on the repository's page, "
        "or use a different token"
    )


def _terms_advice(page: str) -> str:
    """Return how to get access to a gated repository."""
    if get_token() is None:
        return f"Accept its terms on {page}. {_token_advice()}"
    return (
        f"The token from {_token_source()} has no access. Accept the terms on {page} with the "
        "account of that token, or use a different token. A fine-grained token must allow reading "
        "gated repositories"
    )


def _token_source() -> str:
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the login of `hf auth login`"


# ---------------------------------------------------------------- a model that is published


def explain_publishing(error: Exception) -> str | None:
    """Return why the Hub refuses a model; None for an outage, so trying again later may help."""
    status = status_of(error)
    match error:
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE, or publish to a folder."
        case HfHubHTTPError() if status == 401:
            return (
                "the Hub does not accept this token (401). Create a token with write access at "
                f"{TOKENS_PAGE}. Then set HF_TOKEN to this token, or run `hf auth login`."
            )
        case HfHubHTTPError() if status == 403:
            return (
                f"the Hub denied access (403): {_said(error)}. Use a token with write access "
                f"({TOKENS_PAGE}), or publish somewhere else."
            )
        case HfHubHTTPError() if status not in (408, 429) and status < 500:
            return f"the Hub rejected the request ({status}): {_said(error)}"
        case ValueError():  # about the card's YAML, from our check and from the client's commit
            return (
                "the Hub rejected the model card's metadata (does the Hub know the license in "
                f"publish.license?): {error}"
            )
    return None


def _said(error: HfHubHTTPError) -> str:
    """Return the Hub's words without URLs and request ids."""
    return str(error.server_message or "no reason given").splitlines()[0]
