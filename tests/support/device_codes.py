"""A command line that asks for a key, over REST."""


def asked(service, client="powermean on a host"):
    """The codes of a command line that asked to be signed in."""
    answer = service.anyone.post("/v1/device-codes", json={"client": client})
    assert answer.status_code == 201, answer.text
    return answer.json()


def claim(service, started):
    """What the command line hears when it asks for its key."""
    return service.anyone.post("/v1/device-codes/claim", json={"device_code": started["device_code"]})
