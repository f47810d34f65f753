"""pglean: online table maintenance for PostgreSQL, with nothing installed on the server.

    import pglean
    with pglean.connect("postgresql:///shop") as db:
        result = db.repack("public.orders", jobs=4, on_progress=print)
        print(result.bytes_before, result.bytes_after, result.exclusive_lock_ms)

Errors are the tree in `pglean.errors`.
"""

from pglean import errors
from pglean.advice.advice import Action, ActionKind, Advice, Age, Hold
from pglean.advice.cost import Cost
from pglean.advice.figures import Vacuum
from pglean.api import Database, connect
from pglean.bloat.density import Density
from pglean.bloat.finding import Bloat, Method, RelationBloat, TableBloat
from pglean.engines.plan import ReindexPlan
from pglean.errors import Finding, PgleanError
from pglean.horizon import Holder
from pglean.options import Capture, Options, Verify, Window
from pglean.progress import Progress
from pglean.result import RebuiltIndex, ReindexResult, RelationSize, Result
from pglean.rewrite.plan import Plan
from pglean.rewrite.status import Finished, Status
from pglean.selection import Chosen
from pglean.version import __version__

__all__ = [
    "Action",
    "ActionKind",
    "Advice",
    "Age",
    "Bloat",
    "Capture",
    "Chosen",
    "Cost",
    "Database",
    "Density",
    "Finding",
    "Finished",
    "Hold",
    "Holder",
    "Method",
    "Options",
    "PgleanError",
    "Plan",
    "Progress",
    "RebuiltIndex",
    "ReindexPlan",
    "ReindexResult",
    "RelationBloat",
    "RelationSize",
    "Result",
    "Status",
    "TableBloat",
    "Vacuum",
    "Verify",
    "Window",
    "__version__",
    "connect",
    "errors",
]
