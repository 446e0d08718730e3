"""People over REST: their accounts, and the browsers in which they sign in."""

ADA = "ada@example.org"
PASSWORD = "correct horse battery"


def person(service, email=ADA, **more):
    answer = service.person.post(
        "/v1/people", json={"name": "Ada", "email": email, "project": "default"} | more
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def invited(service, email=ADA):
    """A browser that followed an invitation."""
    code = service.person.post(f"/v1/people/{email}/login-codes").json()["code"]
    browser = service.browser()
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    return browser


def with_password(service, email=ADA):
    """The browser in which a new person set their password."""
    person(service, email)
    browser = invited(service, email)
    answer = browser.put("/v1/me/password", json={"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return browser


def sign_in(service, email=ADA, password=PASSWORD):
    """A new browser, and what it was told."""
    browser = service.browser()
    return browser, browser.post("/v1/sessions", json={"email": email, "password": password})


def visitor(service):
    """A new browser, which shows where it is sent instead of going there."""
    browser = service.browser()
    browser.follow_redirects = False
    return browser
