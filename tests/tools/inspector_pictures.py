"""Takes the README's pictures of the inspector, in light and dark.

python tests/tools/inspector_pictures.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.browser import chromium, inspector
from support.harness import DEMO

STATE = "#q=beta%3A0.15..0.3+-category%3Astyle&tab=pairs"


def main():
    with inspector() as url, chromium() as running:
        for look in ("light", "dark"):
            page = running.new_page(
                viewport={"width": 1360, "height": 800}, color_scheme=look, device_scale_factor=1.5
            )
            page.goto(f"{url}{STATE}")
            page.wait_for_selector('.inspector[data-state="ready"]')
            page.locator(".listing .open").first.wait_for()
            page.wait_for_timeout(300)
            page.screenshot(path=DEMO / f"inspector-{look}.png")
            page.close()


if __name__ == "__main__":
    main()
