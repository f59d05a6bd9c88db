"""Takes the documentation's pictures of the demo's report and of the inspector, light and dark.

make demo && python tests/tools/pictures.py demo/report.html
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browser import chromium, inspector
from support.harness import DEMO

STATE = "#q=beta%3A0.15..0.3+-category%3Astyle&tab=pairs"


def take_report(running, look, report):
    page = running.new_page(viewport={"width": 1200, "height": 1745}, color_scheme=look)
    page.goto(report.resolve().as_uri())
    page.screenshot(path=DEMO / f"report-{look}.png")
    page.close()


def take_inspector(running, look, url):
    page = running.new_page(
        viewport={"width": 1360, "height": 800}, color_scheme=look, device_scale_factor=1.5
    )
    page.goto(f"{url}{STATE}")
    page.wait_for_selector('.inspector[data-state="ready"]')
    page.locator(".listing .open").first.wait_for()
    page.wait_for_timeout(300)
    page.screenshot(path=DEMO / f"inspector-{look}.png")
    page.close()


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: pictures.py REPORT.html, the report of the demo (make demo)")
    with inspector() as url, chromium() as running:
        for look in ("light", "dark"):
            take_report(running, look, Path(sys.argv[1]))
            take_inspector(running, look, url)


if __name__ == "__main__":
    main()
