"""Leave all that is imported so far out of garbage collection, as the last import of a process that
forks.

A collection writes to each object that it looks at. In a fork, this copies the imported modules,
page by page, and takes longer than a tiny run trains.
"""

import gc

gc.collect()
gc.freeze()
