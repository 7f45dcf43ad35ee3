"""What a user sees of Pion, as text files, to prove that a change of the code changes nothing."""

import os
import time

# The day of whoever runs this. Pion's clock is set before anything imports it.
TODAY = 1_899_998_000.0  # 2030-03-17 17:13:20 UTC

_now, _begun = time.time, time.time()
time.time = lambda: TODAY + _now() - _begun
os.environ["TZ"] = "UTC"
time.tzset()
