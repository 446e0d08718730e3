"""The Python client for programs with an event loop."""

from powermean import rest, rest_cluster, rest_identity, rest_sharing
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
    pause_job = async_method(rest.pause_job)
    resume_job = async_method(rest.resume_job)
    set_priority = async_method(rest.set_priority)
    delete_job = async_method(rest.delete_job)

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
    delete_replay = async_method(rest.delete_replay)

    logs = async_method(rest.logs)
    checkpoints = async_method(rest.checkpoints)
    checkpoint = async_method(rest.checkpoint)
    delete_checkpoint = async_method(rest.delete_checkpoint)
    pin_checkpoint = async_method(rest.pin_checkpoint)
    unpin_checkpoint = async_method(rest.unpin_checkpoint)
    files = async_method(rest.files)
    delete_files = async_method(rest.delete_files)

    datasets = async_method(rest.datasets)
    get_dataset = async_method(rest.get_dataset)
    delete_dataset = async_method(rest.delete_dataset)

    storage = async_method(rest_identity.storage)
    limit_storage = async_method(rest_identity.limit_storage)
    retention = async_method(rest_identity.retention)
    set_retention = async_method(rest_identity.set_retention)
    delete_project = async_method(rest_identity.delete_project)
    collect_garbage = async_method(rest_identity.collect_garbage)

    nodes = async_method(rest_cluster.nodes)
    get_node = async_method(rest_cluster.get_node)
    node_samples = async_method(rest_cluster.node_samples)
    cordon_node = async_method(rest_cluster.cordon_node)
    drain_node = async_method(rest_cluster.drain_node)
    uncordon_node = async_method(rest_cluster.uncordon_node)
    remove_node = async_method(rest_cluster.remove_node)
    servers = async_method(rest_cluster.servers)
    engines = async_method(rest_cluster.engines)
    get_engine = async_method(rest_cluster.get_engine)
    create_engine = async_method(rest_cluster.create_engine)
    remove_engine = async_method(rest_cluster.remove_engine)
    priorities = async_method(rest_cluster.priorities)
    set_priority_class = async_method(rest_cluster.set_priority_class)
    remove_priority_class = async_method(rest_cluster.remove_priority_class)

    pools = async_method(rest_cluster.pools)
    get_pool = async_method(rest_cluster.get_pool)
    quotas = async_method(rest_sharing.quotas)
    change_quota = async_method(rest_sharing.change_quota)
    queue = async_method(rest_sharing.queue)
    lanes = async_method(rest_sharing.lanes)
    usage = async_method(rest_sharing.usage)
    usage_csv = async_method(rest_sharing.usage_csv)

    audit = async_method(rest_identity.audit)
    audit_head = async_method(rest_identity.audit_head)
    set_secret = async_method(rest_identity.set_secret)
    secrets = async_method(rest_identity.secrets)
    remove_secret = async_method(rest_identity.remove_secret)

    me = async_method(rest_identity.me)
    people = async_method(rest_identity.people)
    add_person = async_method(rest_identity.add_person)
    change_person = async_method(rest_identity.change_person)
    invite_person = async_method(rest_identity.invite_person)

    projects = async_method(rest_identity.projects)
    create_project = async_method(rest_identity.create_project)
    get_project = async_method(rest_identity.get_project)
    change_project = async_method(rest_identity.change_project)
    members = async_method(rest_identity.members)
    set_member = async_method(rest_identity.set_member)
    remove_member = async_method(rest_identity.remove_member)

    keys = async_method(rest_identity.keys)
    create_key = async_method(rest_identity.create_key)
    revoke_key = async_method(rest_identity.revoke_key)

    login_code = async_method(rest_identity.login_code)
    sessions = async_method(rest_identity.sessions)
    end_session = async_method(rest_identity.end_session)
    sign_in_ways = async_method(rest_identity.sign_in_ways)
    start_oidc = async_method(rest_identity.start_oidc)
    show_device = async_method(rest_identity.show_device)
    decide_device = async_method(rest_identity.decide_device)
    ready = async_method(rest.ready)
