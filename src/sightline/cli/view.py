"""`sightline view`: a finished scene in the browser."""

from pathlib import Path

from sightline.cli.parser import VerbParser


def parser() -> VerbParser:
    """Return the verb's parser."""
    verb = VerbParser("view", "Look at a finished scene in the browser; stop with Ctrl-C.")
    verb.add_argument("scene", type=str, help="a run folder, or a .ply, .splat or .spz file")
    verb.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    verb.add_argument("--port", type=int | None, help="port; default: a free one from 8080 on")
    verb.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return verb


def run(words: list[str]) -> None:
    """Run the verb."""
    arguments = parser().parse_args(words)
    from sightline.app.scene import viewer_scene
    from sightline.app.viewer import view

    view(
        viewer_scene(Path(arguments.scene)),
        host=arguments.host,
        port=arguments.port,
        open_browser=not arguments.no_browser,
    )
