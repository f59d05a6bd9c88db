"""Show pairs, their betas and the replies behind them in a browser.

    SP2DPO_DATA=org/name@tag python app.py

The page is one component, built from the files in assets/. It loads a few numbers for every pair
once, filters and draws in the browser, and calls the functions of `api` for texts.

GRADIO_SERVER_NAME and GRADIO_SERVER_PORT are the address to listen on, and SP2DPO_HOSTS lists
further names of this server, separated by commas.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import gradio as gr
from fastapi import FastAPI

import server
from answers import forget_unfetched
from api import EXPORTS, LIBRARY, PAGE_FUNCTIONS, find_pairs
from errors import UnusableDataset
from guard import Guard, find_names

ASSETS = Path(__file__).parent / "assets"
LIBRARIES = ("views", "query", "schedule", "diff", "text", "page", "charts", "movers")
"""Files of assets/lib, in an order in which each file comes after those that it uses."""
MAX_QUEUED = 64
"""Largest number of calls of `find_pairs` that wait."""
MAX_SESSIONS = 100
"""Largest number of sessions of which Gradio keeps a copy of the component."""


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
        # Without the queue, answers of Gradio's client and of the MCP tool are sent at once. Only
        # those of `call/find_pairs` wait to be fetched.
        gr.api(find_pairs, api_name="find_pairs", queue=False, concurrency_limit=4)
    blocks.queue(max_size=MAX_QUEUED)
    # Gradio would compute statistics of the last 10,000 calls after every call.
    blocks._queue.ANALYTICS_MAX_EVENTS = 1
    blocks._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize
    blocks._queue.sleep_when_free = 0.01  # 1 ms would take 7 % of a processor while idle
    blocks.state_session_capacity = MAX_SESSIONS
    return blocks


def create_app(blocks: gr.Blocks, bound: str) -> Guard:
    """Return the application that answers requests to this address."""
    parent = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mounted = gr.mount_gradio_app(
        parent, blocks, path="/",
        root_path=os.environ.get("GRADIO_ROOT_PATH"),
        head=f"<style>{(ASSETS / 'inspector.css').read_text('utf-8')}</style>",
        theme=gr.themes.Base(font="system-ui", font_mono="ui-monospace"),
        mcp_server=True, footer_links=["api"], ssr_mode=False, show_error=False,
        run_history=False, enable_monitoring=False, pwa=False,
        allowed_paths=[str(EXPORTS.folder)], max_file_size="1kb",  # the page has no uploads
    )  # fmt: skip
    names = find_names(bound, os.environ)
    return Guard(mounted, names, str(EXPORTS.folder), lambda: forget_unfetched(blocks._queue))


def warm_up() -> None:
    """Open the Space's own data set before the first visitor asks for it."""
    with suppress(UnusableDataset):  # visitors see the message when they open the page
        LIBRARY.get("")


PAGE = build_page()


def main() -> None:
    """Run the server until it is stopped."""
    on_hub = "SPACE_ID" in os.environ
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_hub else "127.0.0.1")
    port = os.environ.get("GRADIO_SERVER_PORT")
    folder = server.make_folder()
    server.handle_signals(lambda number, frame: server.end(folder))
    if parent := os.environ.pop("SP2DPO_PARENT", ""):
        server.end_with_parent(folder, int(parent))
    try:
        listener = server.open_port(host.strip("[]"), int(port) if port else None)
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        server.end(folder, 1)
        return
    # A daemon thread, so that a download does not delay the end of the server.
    Thread(target=warm_up, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"Running on http://{shown}:{listener.getsockname()[1]}/\n")
    sys.stdout.flush()
    server.serve(create_app(PAGE, host), listener, folder)


if __name__ == "__main__":
    main()
