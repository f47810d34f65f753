"""Connection strings: what of one may be told, and how it is typed as options of a command line."""

from __future__ import annotations

import shlex

from psycopg import pq
from psycopg.conninfo import make_conninfo

from pglean.errors import UsageError

#: Parameters of a connection that have an option of their own, in psql as here.
_OPTIONS = {"host": "-h", "port": "-p", "user": "-U"}
#: What is repeated beyond these: where the server is, and how it is known to be the right one. No others: a key may be
#: a URI with its PIN, and `options` anything that a session can be set to.
_REPEATED_WORDS = """
    hostaddr service servicefile passfile sslmode sslnegotiation sslcert sslrootcert sslcrl sslcrldir sslcertmode
    sslsni ssl_min_protocol_version ssl_max_protocol_version requiressl requirepeer require_auth channel_binding
    gssencmode krbsrvname gsslib gssdelegation target_session_attrs load_balance_hosts connect_timeout
"""
_REPEATED = frozenset(_REPEATED_WORDS.split())


def connection_words(conninfo: str, database: str) -> str:
    """Options of the command line that lead to a database as `conninfo` does, without what is secret."""
    given = {
        name: option.val.decode()
        for option in pq.Conninfo.parse(conninfo.encode())
        if option.val is not None and ((name := option.keyword.decode()) in _OPTIONS or name in _REPEATED)
    }
    if given.keys() <= _OPTIONS.keys():
        # What would be taken for a connection string is written as one.
        name = make_conninfo(dbname=database) if "=" in database or "://" in database else database
        words = [word for key, option in _OPTIONS.items() if key in given for word in (option, given[key])]
        return shlex.join([*words, "-d", name])
    return shlex.join(["-d", make_conninfo(dbname=database, **given)])


def invalid_conninfo(error: Exception, conninfo: str) -> UsageError:
    """What is wrong with a connection string; the driver quotes what it does not understand, perhaps a password."""
    secret = "://" in conninfo or "password" in conninfo
    return UsageError("invalid connection parameters", detail=None if secret else str(error).strip())
