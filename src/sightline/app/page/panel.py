"""The part of a tab that starts one kind of job: files, options, the command, the job's card."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sightline.app.jobs.kinds import KINDS, Kind, Role
from sightline.app.jobs.request import Request
from sightline.app.jobs.words import build_words, check_options, shown_command
from sightline.app.page.controls import Beginnings, Controls, flag, has_control, make_controls
from sightline.app.page.sent import sent_files, shown_files
from sightline.app.page.widgets import (
    command_box,
    command_markup,
    error_markup,
    files_box,
    job_card,
)
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import gradio as gr

    from sightline.app.jobs.manager import Jobs

QUIET: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "always_last",
}
"""How the page's events run: at once, without a spinner, and not as an API of Gradio's."""
LEFT_TO_PROGRAM = "default"
_HINT = "Drop here, or tap to choose"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What every tab is given.

    Attributes:
        jobs: Runs and keeps the jobs.
        owner: Tells whose request it is.
        weights: Choices of weights, filled anew whenever the page is loaded.
        last: Called once all tabs are made, for events that reach into all of them.
        places: Kind of job -> tabs and accordions in which its card is; see `widgets.opener`.
    """

    jobs: "Jobs"
    owner: Callable[["gr.Request"], str]
    weights: list["gr.Dropdown"] = field(default_factory=list)
    last: list[Callable[[], object]] = field(default_factory=list)
    places: dict[str, Sequence[str]] = field(default_factory=dict)

    def submit(self, request: "gr.Request", wanted: Callable[[str], Request]) -> dict[str, Any]:
        """Start a job and return what its card shows; what is wrong is shown there too.

        Args:
            request: Whose.
            wanted: From the owner to what is asked for; may raise.
        """
        try:
            owner = self.owner(request)
            return {"job": self.jobs.submit(owner, wanted(owner)).id}
        except SightlineError as error:
            return {"error": str(error)}

    def weight_choices(self, owner: str | None = None) -> list[tuple[str, str]]:
        """Return what a choice of weights offers: what is shown, and the reference.

        Args:
            owner: Whose own trainings are offered too.
        """
        kept = [(name, f"weights:{name}") for name in self.jobs.weights.names()]
        own = {} if owner is None else self.jobs.trained_weights(owner)
        made = [(shown, reference) for reference, shown in own.items()]
        return [(LEFT_TO_PROGRAM, LEFT_TO_PROGRAM), *made, *kept]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What `job_panel` has made, for tabs that join panels together."""

    kind: Kind
    card: "gr.HTML"
    controls: Controls
    roles: Mapping[str, Any]
    files: "gr.HTML | None"
    button: "gr.Button"
    inputs: list[Any]
    """All of the above that a request is made from, in the order of `request`."""
    filled: tuple[str, ...] = ()
    """Roles that the tab fills in."""

    def request(
        self,
        raw: Sequence[Any],
        *,
        scene: str | None = None,
        files: Mapping[str, Sequence[str]] | None = None,
        inputs: Sequence[str] | None = None,
        **changes: Any,  # noqa: ANN401 - options
    ) -> Request:
        """Return the request that the controls hold.

        Args:
            raw: Their values, in the order of ``inputs``.
            scene: Job whose run is worked on.
            files: Further files by role.
            inputs: Instead of the files of the drop zone.
            changes: Options that take the place of those of the controls.

        Raises:
            InputError: If a control holds nonsense, or files are still on their way.
        """
        dropped, given, values = self._split(raw)
        return Request(
            kind=self.kind.name,
            options={**self.controls.values(values), **changes},
            inputs=list(sent_files(dropped) if inputs is None else inputs),
            files={**given, **(files or {})},
            scene=scene,
        )

    def _split(self, raw: Sequence[Any]) -> tuple[Any, dict[str, list[str]], Sequence[Any]]:
        at = 0 if self.files is None else 1
        dropped = raw[0] if at else None
        given = {}
        for role, value in zip(self.roles, raw[at : at + len(self.roles)], strict=True):
            if isinstance(value, str):
                refs = [] if value == LEFT_TO_PROGRAM else [value]
            else:
                refs = list(sent_files(value))
            if refs:
                given[role] = refs
        return dropped, given, raw[at + len(self.roles) :]

    def command(self, raw: Sequence[Any]) -> str:
        """Return markup of the command line that does what the controls say, or what is wrong."""
        try:
            dropped, given, values = self._split(raw)
            names = list(shown_files(dropped).values())
            stand_in = _STAND_IN.get(self.kind.inputs[:1], "") if self.kind.inputs else ""
            # One folder is what a person would type for many pictures.
            few = 0 < len(names) <= 3 and not self.kind.together
            shown = names if few else [stand_in] if stand_in else []
            options = check_options(self.kind, self.controls.values(values))
            # What is still to come counts as there: a form is not wrong because it is empty.
            missing = [name for name in self.kind.required if options.get(name) in (None, "")]
            self.kind.check(options, list(dict.fromkeys([*given, *missing])))
            absent = [
                r for r in self.kind.roles if r in (*missing, *self.filled) and r not in given
            ]
            files = {role: _role_name(self.kind.roles[role], r) for role, r in given.items()}
            words = build_words(
                self.kind,
                options,
                inputs=shown if self.kind.scene != "optional" else [],
                files=files | {name: self.kind.roles[name].example for name in absent},
                scene=None if self.kind.scene == "no" else f"{self.kind.works_on}/",
                output=self.kind.output,
            )
            return command_markup(shown_command(words, self.kind))
        except SightlineError as error:
            return error_markup(str(error))


_STAND_IN: dict[tuple[str, ...], str] = {
    ("picture",): "photos/",
    ("weights",): "weights.safetensors",
    ("scene",): "splats.ply",
}


def _role_name(role: Role, refs: Sequence[str]) -> str:
    if refs[0].startswith("weights:"):
        return f"models/{refs[0].removeprefix('weights:')}"
    if "/" in refs[0]:
        return refs[0].partition("/")[2]
    return role.example


def again(value: dict[str, Any]) -> dict[str, Any]:
    """Return a card's value that differs from the one before, so that it looks again."""
    return {**value, "stamp": time.time()}


def job_panel(
    page: Page,
    name: str,
    *,
    place: Sequence[str],
    main: Sequence[str],
    button: str,
    caption: str | None = None,
    hint: str = _HINT,
    drop: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    hidden: Sequence[str] = (),
    filled: Sequence[str] = (),
    starts: bool = True,
    also: Sequence[str] = (),
    beside: Callable[[], None] | None = None,
) -> Panel:
    """Make the panel of one kind inside the surrounding Gradio block.

    Args:
        page: What it works with.
        name: Of the kind.
        place: Tabs and accordions that it stands in; see `widgets.opener`.
        main: Options and roles shown at once; the others wait behind "More options".
        button: What starts the job.
        caption: In the drop zone of the inputs; without, there is none.
        hint: Below it.
        drop: Role whose drop zone stands in that place.
        defaults: What controls begin with, where that is not the command line's default.
        choices: Names to pick from, for options that are text; others may still be typed.
        hidden: Options and roles without a control.
        filled: Roles without one that the tab itself fills in; the command names them too.
        starts: Whether the button submits; else the tab says what it does.
        also: Further kinds whose jobs the card shows.
        beside: Makes further buttons under the one that starts.
    """
    import gradio as gr

    kind = KINDS[name]
    options = [o for o, one in kind.options().items() if o not in hidden and has_control(one)]
    roles = [r for r in kind.roles if r not in (*hidden, *filled, drop)]
    parts: dict[str, Any] = {}
    start_row: tuple[gr.Button, gr.HTML] | None = None
    start_with = Beginnings(values=defaults or {}, choices=choices or {})
    files = None
    with gr.Row(equal_height=False):
        if caption is not None:
            with gr.Column(scale=3, min_width=320):
                files = files_box(f"{name}-files", caption, kind.inputs, hint=hint)
                start_row = _start_row(name, button, beside)
        if drop is not None:
            with gr.Column(scale=3, min_width=320):
                parts[drop] = _role_box(kind, drop)
                start_row = _start_row(name, button, beside)
        if options or roles:
            with gr.Column(scale=2, min_width=320):
                parts |= _make(
                    page, kind, [o for o in main if o in options], roles, main, start_with
                )
    rest = [o for o in options if o not in main]
    others = [r for r in roles if r not in main]
    if rest or others:
        with gr.Accordion("More options", open=False, elem_id=f"{name}-more"):
            parts |= _make(page, kind, rest, others, others, start_with)
    start, command = start_row or _start_row(name, button, beside)
    # One order for both, whatever stands where on the page.
    controls = Controls(kind=kind, parts={o: parts[o] for o in options})
    given = {r: parts[r] for r in kind.roles if r in parts}
    card = job_card(f"{name}-card", [name, *also])
    page.places.update(dict.fromkeys([name, *also], place))
    panel = Panel(
        kind=kind,
        card=card,
        controls=controls,
        roles=given,
        files=files,
        button=start,
        inputs=[*([] if files is None else [files]), *given.values(), *controls.components],
        filled=tuple(filled),
    )

    def show(*raw: Any) -> str:  # noqa: ANN401
        return panel.command(raw)

    gr.on([part.change for part in panel.inputs], show, panel.inputs, command, **QUIET)
    command.value = panel.command([part.value for part in panel.inputs])
    if starts:

        def submit(request: gr.Request, *raw: Any) -> dict[str, Any]:  # noqa: ANN401
            return again(page.submit(request, lambda owner: panel.request(raw)))

        start.click(submit, panel.inputs, card, **QUIET)
    return panel


def _start_row(
    name: str, button: str, beside: Callable[[], None] | None
) -> "tuple[gr.Button, gr.HTML]":
    import gradio as gr

    start = gr.Button(button, variant="primary", elem_id=f"{name}-start")
    if beside is not None:
        beside()
    return start, command_box(f"{name}-command")


def _make(
    page: Page,
    kind: Kind,
    options: Sequence[str],
    roles: Sequence[str],
    shown: Sequence[str],
    start_with: Beginnings,
) -> dict[str, Any]:
    """Make controls of options, and of the roles that are shown, in one column."""
    import gradio as gr

    made: dict[str, Any] = dict(make_controls(kind, options, start_with).parts)
    for name in (r for r in roles if r in shown):
        role = kind.roles[name]
        if role.kinds == ("weights",) and role.shape == "file":
            made[name] = gr.Dropdown(
                choices=page.weight_choices(),
                value=LEFT_TO_PROGRAM,
                label=flag(name),
                info=role.text,
                elem_id=_elem_id(kind, name),
                elem_classes=["sl-option"],
            )
            page.weights.append(made[name])
        else:
            made[name] = _role_box(kind, name)
    return made


def _role_box(kind: Kind, name: str) -> "gr.HTML":
    role = kind.roles[name]
    hint = f"{role.text[:1].upper()}{role.text[1:]}. {_HINT}."
    many = role.shape == "folder"
    return files_box(_elem_id(kind, name), flag(name), role.kinds, many=many, hint=hint)


def _elem_id(kind: Kind, name: str) -> str:
    return f"{kind.name}-{name.replace('_', '-')}"
