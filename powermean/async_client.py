"""The Python client for programs with an event loop."""

from powermean import rest
from powermean.connection import AsyncConnection, async_method
from powermean.deprecations import renamed


class AsyncClient(AsyncConnection):
    """Client's calls, awaited; authorised by a key or by a browser session's cookies."""

    create_job = async_method(rest.create_job)
    create_job_from_text = async_method(rest.create_job_from_text)
    job_text = async_method(rest.job_text)
    get_job = async_method(rest.get_job)
    list_jobs = async_method(rest.list_jobs)
    cancel_job = async_method(rest.cancel_job)

    metrics = async_method(rest.metrics)
    metric_names = async_method(rest.metric_names)
    health = async_method(rest.health)
    staleness = async_method(rest.staleness)
    lag = renamed("lag", staleness)
    exponents = async_method(rest.exponents)

    trajectories = async_method(rest.trajectories)
    trajectory = async_method(rest.trajectory)
    trajectory_tokens = async_method(rest.trajectory_tokens)

    replay = async_method(rest.replay)
    replays = async_method(rest.replays)
    get_replay = async_method(rest.get_replay)
    replay_result = async_method(rest.replay_result)
    replay_tokens = async_method(rest.replay_tokens)

    logs = async_method(rest.logs)
    checkpoints = async_method(rest.checkpoints)
    files = async_method(rest.files)

    datasets = async_method(rest.datasets)
    get_dataset = async_method(rest.get_dataset)
    delete_dataset = async_method(rest.delete_dataset)

    nodes = async_method(rest.nodes)
    remove_node = async_method(rest.remove_node)
    engines = async_method(rest.engines)
    get_engine = async_method(rest.get_engine)
    create_engine = async_method(rest.create_engine)
    remove_engine = async_method(rest.remove_engine)

    login_code = async_method(rest.login_code)
    me = async_method(rest.me)
    keys = async_method(rest.keys)
    create_key = async_method(rest.create_key)
    revoke_key = async_method(rest.revoke_key)
    sessions = async_method(rest.sessions)
    end_session = async_method(rest.end_session)
    sign_in_ways = async_method(rest.sign_in_ways)
    start_oidc = async_method(rest.start_oidc)
    show_device = async_method(rest.show_device)
    decide_device = async_method(rest.decide_device)
    ready = async_method(rest.ready)
