"""Renew the picture of the cluster page in docs/sharing.md: `python -m tools.cluster_picture`.

A real server shows a made-up cluster to the system's Chromium. The options draw it otherwise.
"""

import argparse
import math
import tempfile
from datetime import timedelta
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from sqlalchemy import select

from powermean.contracts.attempts import NodeReport
from server.cluster import samples
from server.db.models import Node, NodeSample
from tests.browser.conftest import FLAGS
from tests.support.browser_tabs import Tabs
from tests.support.real_service import Service
from tests.support.sample_cluster import Cluster, busy

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "cluster.png"


def an_hour_of_use(cluster: Cluster) -> None:
    """The last hour's use of GPUs, around what the nodes reported last; they are seen now."""
    last = {row.node_id: row for row in cluster.session.scalars(select(NodeSample))}
    for node in cluster.session.scalars(select(Node)):
        node.seen_at = cluster.now
        if node.id not in last:
            continue
        levels = [
            (gpu.get("utilisation", 0.0), gpu.get("memory_used_mb", 0)) for gpu in last[node.id].use["gpus"]
        ]
        cluster.session.delete(last[node.id])
        report = NodeReport.model_validate(node.report)
        for beat in range(samples.KEPT // timedelta(seconds=samples.EVERY_S)):
            gpus = []
            for place, (gpu, (level, memory)) in enumerate(zip(report.gpus, levels, strict=True)):
                now = min(100.0, level * (0.8 + 0.2 * math.sin(beat / 9 + place)))
                gpus.append(gpu.model_copy(update={"utilisation": now, "memory_used_mb": memory}))
            seen = report.model_copy(update={"gpus": tuple(gpus)})
            samples.record(cluster.session, node.id, seen, cluster.ago(seconds=samples.EVERY_S * beat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=1590, help="of the picture; 0: the whole page")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="powermean-picture-") as folder, sync_playwright() as driver:
        service = Service(Path(folder))
        with service.app.state.database.write() as session:
            an_hour_of_use(busy(session))
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        tab = Tabs(browser, service).open(
            color_scheme="dark" if options.dark else "light",
            viewport={"width": options.width, "height": options.height or 900},
        )
        tab.page.goto("/cluster")
        tab.page.wait_for_selector("#lanes[data-drawn]", state="attached")
        tab.page.wait_for_timeout(1000)  # charts grow into place
        tab.page.screenshot(path=options.out, full_page=not options.height)
        with Image.open(options.out) as drawn:
            drawn.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(options.out, optimize=True)
        browser.close()
        service.close()


if __name__ == "__main__":
    main()
