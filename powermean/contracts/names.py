"""Names that two rooms must agree on."""

START_TASK = "powermean.start"  # start(attempt_id): a node claims the attempt and spawns its supervisor
VALIDATE_TASK = "powermean.validate"  # validate(job_id): a node checks what only a node can check
REPLAY_TASK = "powermean.replay"  # replay(replay_id): a node recomputes a recorded step
LONG_TASKS = 2  # checks and replays that a node runs at once
NODE_NAME = r"^\w[\w.-]*$"  # a part of addresses, where `..` would be none
PROJECT_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
PRIORITY_NAME = r"^[a-z0-9][a-z0-9-]{0,31}$"
ENGINE_NAME = r"^[A-Za-z0-9][\w.-]*$"
VAULT_NAME = r"^[a-z0-9][a-z0-9._-]*$"
VAULT_REFERENCE = r"^(me/)?[a-z0-9][a-z0-9._-]*$"
VAULT_VARIABLE = r"^[A-Z][A-Z0-9_]*_(TOKEN|KEY|SECRET|PASSWORD)$"
LABEL = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
_SMALL = "small letters and digits, and after the first of them also"
_ANY = "letters and digits, and after the first of them also"
IN_WORDS = {  # what refusals say instead of the pattern
    PROJECT_NAME: f"may have {_SMALL} hyphens; at most 63 characters",
    PRIORITY_NAME: f"may have {_SMALL} hyphens; at most 32 characters",
    ENGINE_NAME: f"may have {_ANY} dots, hyphens and underscores",
    VAULT_NAME: f"may have {_SMALL} dots, hyphens and underscores",
    VAULT_REFERENCE: f"may have {_SMALL} dots, hyphens and underscores; a secret of your own begins with me/",
    VAULT_VARIABLE: "must be capital letters, digits and underscores, begin with a letter, and end with "
    "_TOKEN, _KEY, _SECRET or _PASSWORD",
    LABEL: f"may have {_ANY} dots, hyphens, underscores and slashes",
    NODE_NAME: "may have letters, digits and underscores, and after the first of them also dots and hyphens",
}
EVENTS_CHANNEL = "powermean:events"  # Redis pub/sub: what a server committed, for the others
NODE_NAME_TAKEN = "node_name_taken"  # error code: another worker reports under this node's name
PORT_TAKEN = "rendezvous_port_taken"  # error code: another job of several nodes has the fixed port
RANK_LOST = "rank_lost"  # error code: ranks of another node are gone, and that node knows why


def node_queue(node_id: str) -> str:
    """The Celery queue that only this node consumes."""
    return f"node.{node_id}"


SESSION_COOKIE = "powermean_session"


def session_cookie(host: str) -> str:
    """The session cookie's name at the address in a Host header, with the port, which cookies ignore."""
    _, _, port = host.rpartition(":")
    return f"{SESSION_COOKIE}_{port}" if port.isdecimal() else SESSION_COOKIE
