"""`sightline app`: everything in the browser, on this machine."""

from importlib.util import find_spec
from pathlib import Path

from sightline.cli.parser import VerbParser
from sightline.errors import MissingExtraError

EXAMPLES = """\
examples:
  sightline app
  sightline app --root scenes/ --port 8000 --no-browser
  sightline app --host 0.0.0.0        (asks visitors for the token that it prints)

Jobs live in --root and outlive the browser and the server. docs/app.md describes the HTTP API.
"""


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser("app", "The app in the browser; stop with Ctrl-C.", EXAMPLES)
    verb.add_argument("--root", type=str, default="outputs", help="folder of all jobs")
    verb.add_argument("--models", type=str, default="models", help="folder of the app's weights")
    verb.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    verb.add_argument("--port", type=int | None, help="port; default: a free one from 7860 on")
    verb.add_argument(
        "--names",
        type=str,
        default="",
        help="comma-separated names by which others reach this machine, for another --host",
    )
    verb.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    arguments = parser().parse_args(words)
    if find_spec("gradio") is None:
        raise MissingExtraError("sightline app", "gradio", "app")
    from sightline.app.page import mount_page
    from sightline.app.server import AppSettings, serve

    serve(
        AppSettings(
            root=Path(arguments.root),
            models=Path(arguments.models),
            host=arguments.host,
            port=arguments.port,
            open_browser=not arguments.no_browser,
            names=tuple(name.strip() for name in arguments.names.split(",") if name.strip()),
        ),
        mount_page,
    )
