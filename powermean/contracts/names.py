"""Names that two rooms must agree on."""

START_TASK = "powermean.start"  # start(attempt_id): a node claims the attempt and spawns its supervisor
VALIDATE_TASK = "powermean.validate"  # validate(job_id): a node checks what only a node can check
REPLAY_TASK = "powermean.replay"  # replay(replay_id): a node recomputes a recorded step
EVENTS_CHANNEL = "powermean:events"  # Redis pub/sub: what a server committed, for the others
NODE_NAME = r"^\w[\w.-]*$"  # a part of addresses, where `..` would be none
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
