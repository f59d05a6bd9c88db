"""Show pairs, their betas and the replies behind them in a browser.

    SP2DPO_DATA=org/name@tag python app.py

The page is one component, built from the files in assets/. It loads a few numbers for every pair
once, filters and draws in the browser, and calls the functions of `api` for texts.
"""

from contextlib import suppress
from pathlib import Path
from threading import Thread

import gradio as gr

from api import LIBRARY, PAGE_FUNCTIONS, find_pairs
from dataset import UnusableDataset

ASSETS = Path(__file__).parent / "assets"
LIBRARIES = ("views", "query", "schedule", "diff", "text", "page", "charts", "movers")
"""Files of assets/lib, in an order in which each file comes after those that it uses."""


def read_scripts() -> str:
    """Return the JavaScript of the page: the libraries, every view, and `inspector.js` last."""
    paths = [ASSETS / "lib" / f"{name}.js" for name in LIBRARIES]
    paths += sorted((ASSETS / "views").glob("*.js"))
    paths += [ASSETS / "pair.js", ASSETS / "inspector.js"]
    return "\n".join(path.read_text("utf-8") for path in paths)


def build_page() -> gr.Blocks:
    """Return the page with its API."""
    # Nothing contacts other hosts except the Hub; Gradio's telemetry would.
    with gr.Blocks(title="SP2DPO inspector", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(
            html_template='<div class="inspector" data-state="loading"></div>',
            js_on_load=f"{read_scripts()}\ninspector.begin(element, server);",
            server_functions=PAGE_FUNCTIONS,
            apply_default_css=False,
            elem_id="inspector",
        )
        gr.api(find_pairs, api_name="find_pairs")
    return blocks


def warm_up() -> None:
    """Open the Space's own data set before the first visitor asks for it."""
    with suppress(UnusableDataset):  # visitors see the message when they open the page
        LIBRARY.get("")


PAGE = build_page()

if __name__ == "__main__":
    # A daemon thread, so that a download does not delay the end of the server.
    Thread(target=warm_up, daemon=True).start()
    PAGE.launch(
        head=f"<style>{(ASSETS / 'inspector.css').read_text('utf-8')}</style>",
        theme=gr.themes.Base(font="system-ui", font_mono="ui-monospace"),
        mcp_server=True,
        footer_links=["api"],
        ssr_mode=False,
        max_file_size="1kb",  # the page has no uploads
    )
