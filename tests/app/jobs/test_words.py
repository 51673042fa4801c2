import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sightline.app.jobs.kinds import KINDS, Kind
from sightline.app.jobs.words import build_words, check_options, option_words, shown_command
from sightline.cli import main
from sightline.errors import InputError, SightlineError

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.text()),
    st.just({}),
)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_kind_is_a_verb_whose_parser_takes_its_words(
    kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    words = build_words(
        kind,
        {},
        inputs=["a", "b"][: kind.most] if kind.inputs and kind.scene == "no" else [],
        files=dict.fromkeys(kind.roles, "/x"),
        scene="scene" if kind.scene != "no" else None,
        output=kind.output,
        again=True,
    )
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    for role in kind.roles:
        assert parsed[role] == "/x"
    assert parsed.get("output") == ("scene" if kind.works_on == "grid" else kind.output)
    plain = {name: one for name, one in kind.options().items() if name in parsed}
    # Lists of the command line are comma-separated or absent here; everything else is the same.
    for name, one in plain.items():
        if name not in ("layers", "modes", "seeds", "features", "probes", "videos"):
            assert parsed[name] == one.default, name
    missing = kind.options().keys() - parsed.keys()
    assert missing <= {"name", "target"}, missing


def test_values_become_words_that_no_parser_can_take_for_options() -> None:
    kind = KINDS["reconstruct"]
    given_values = {"steps": 30, "antialiased": True, "export": "ply,spz", "fps": None}
    options = check_options(kind, given_values)
    assert option_words(kind, options) == ["--steps=30", "--antialiased", "--export=ply,spz"]
    assert check_options(KINDS["features"], {"norm": False, "backbone": "iuvrgb"}) == {
        "norm": False,
        "backbone": "iuvrgb",
    }
    words = build_words(KINDS["features"], {"norm": False}, inputs=["/a.png"], output="/o")
    assert words == ["features", "/a.png", "--no-norm", "-o", "/o", "--json"]
    assert shown_command(words, KINDS["features"]) == "sightline features /a.png --no-norm -o /o"


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("reconstruct", {"steps": True}, "option steps: Input should be a valid integer"),
        ("reconstruct", {"geometry": "magic"}, "option geometry: Input should be 'auto'"),
        ("reconstruct", {"checkpoint": "x.pt"}, "checkpoint names a file"),
        ("reconstruct", {"device": "cuda:9"}, "option device:"),
        ("reconstruct", {"fps": float("nan")}, "expected a finite number"),
        ("reconstruct", {"steps": 2**60}, "up to 2\\^53"),
        ("reconstruct", {"steps": 10**400}, "up to 2\\^53"),
        ("reconstruct", {"start": "1; rm"}, "option start: expected up to 400 letters"),
        ("reconstruct", {"features": "hf:../x"}, "option features: expected"),
        ("prepare", {"cluster": "auto"}, "prepare has no option cluster"),
        ("models-download", {"filename": "/etc/passwd"}, "option filename: expected"),
        ("probe-run", {"features": ["a", "../b"]}, "option features: expected"),
    ],
)
def test_wrong_options_are_refused(kind: str, options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_options(KINDS[kind], options)


@pytest.mark.parametrize("name", ["hf:facebook/dinov2-small", "fused:a+b", "random:dinov2_vits14"])
def test_names_of_models_pass(name: str) -> None:
    assert check_options(KINDS["features"], {"backbone": name}) == {"backbone": name}


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_whatever_comes_is_words_or_a_sentence(name: str, data: st.DataObject) -> None:
    kind = KINDS[name]
    names = st.one_of(st.sampled_from([*kind.options(), "x"]), st.text(max_size=5))
    given_values = data.draw(st.dictionaries(names, VALUES, max_size=3))
    try:
        options = check_options(kind, given_values)
    except SightlineError:
        return
    for word in option_words(kind, options):
        assert word.startswith("--")
        assert ".." not in word
        assert word.isprintable()
