"""How a probe is run, as versioned data: the published protocol, ours, and a fast variant of it.

Every number and every quirk of Feat2GS (github.com/fanegg/Feat2GS at 0930a188) is a field, so that
``feat2gs-v1`` lines up with the published tables and ``sightline-1`` differs only where it says so.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sightline.errors import InputError, UnknownNameError

HEADS = ("xyz", "scaling", "rotation", "opacity", "f_dc", "f_rest")
"""What a Gaussian is made of, in the order of the published heads."""

MODES: dict[str, tuple[str, ...]] = {
    "G": HEADS[:4],
    "T": HEADS[4:],
    "A": HEADS,
    "Gft": HEADS[:4],
    "Tft": HEADS[4:],
    "Aft": HEADS,
    "free": (),
}
"""What a mode reads out of features; the rest is free. ``free`` is the InstantSplat baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """Behaviour of the reference that looks unintended but moves numbers; True keeps it.

    The defaults are those of ``sightline-1``. `QUIRKS` has the reference's numbering.
    """

    one_focal_ratio: bool = False
    """fy is scaled by the horizontal ratio, like fx."""
    stretched_pictures: bool = False
    """The second resize stretches pictures to multiples of 16; otherwise they are cropped."""
    mast3r_without_depth: bool = False
    """MASt3R's alignment never refines depth."""
    imagenet_for_all: bool = False
    """CLIP, RADIO and Stable Diffusion are fed ImageNet's normalisation."""
    mae_block_11: bool = False
    """MAE is read one block before its last, without the final norm."""
    stretched_padding: bool = False
    """The grid of a padded picture is stretched over the picture, instead of sampled in place."""
    randomised_pca: bool = False
    """Principal components by a randomised SVD (seeded here), with random signs."""
    features_freeze: bool = True
    """The ft modes change features in the warm start only."""
    narrow_pixel_readout: bool = False
    """The hidden layer is as wide as the input, 6 units for IUVRGB; otherwise 256."""
    scaled_registration: bool = False
    """Test poses are registered by ``[R | s t]`` instead of ``c -> s R c + t``."""
    shared_test_poses: bool = True
    """Test poses are registered once a scene, to one cloud, for all features."""
    jpeg_masks: bool = False
    """Masks of JPEG pictures are JPEG files, whose borders are then not exactly 255."""
    pose_after_step: bool = False
    """The test pose that is kept is one step later than the loss it was chosen by."""
    masked_are_perfect: bool = False
    """Masked pixels count, and as perfect, in every measure."""
    lpips_unit_range: bool = False
    """LPIPS gets [0, 1] where its weights expect [-1, 1]."""
    arc_about_origin: bool = False
    """The arc turns about the world's origin instead of the point looked at."""
    interpolate_w2c: bool = False
    """The interpolated path is straight in world-to-camera matrices."""
    flickering_depth: bool = False
    """Depth videos are scaled frame by frame, by the range but at most 1."""
    white_video: bool = False
    """Videos have a white background, although training's is black."""
    python_order: bool = False
    """Views are drawn by Python's generator (seeded here), not by torch's."""
    idle_last_step: bool = False
    """The last iteration does not step."""
    free_gauge: bool = False
    """The first camera moves like all others."""
    needs_one_focal: bool = False
    """Test views need one focal length for all training views."""
    needs_pca: bool = False
    """Features without PCA are refused."""
    iuv_needs_two_views: bool = False
    """The view index of a single view divides by zero."""
    zero_padded_ssim: bool = False
    """SSIM's window sees zeros beyond the border, in training and in the score."""
    eight_bit: bool = False
    """Renders are rounded to 8 bits before they are scored."""
    absolute_tolerance: bool = False
    """Depths agree within 0.01 of the aligner's unit instead of 1 % of the depth."""


QUIRKS: dict[str, str] = {f"Q{i + 1}": item.name for i, item in enumerate(fields(Quirks))}
"""The reference's numbering (``docs/probing.md``) -> field of `Quirks`."""

_FIXED = ("arc_about_origin", "interpolate_w2c", "flickering_depth")
_NOT_APPLICABLE = ("needs_one_focal", "needs_pca", "iuv_needs_two_views")
_PUBLISHED_QUIRKS = Quirks(
    **{item.name: item.name not in _FIXED + _NOT_APPLICABLE for item in fields(Quirks)}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Learning rates of the photometric stage, the same for a free parameter and for a head."""

    xyz: float = 1.6e-5
    """In camera extents (1.1 times the farthest camera from the mean)."""
    xyz_final: float = 1.6e-7
    xyz_steps: int = 30_000
    """Steps from the first to the final rate, log-linear; longer than the run."""
    f_dc: float = 2.5e-4
    f_rest: float = 1.25e-5
    opacity: float = 5e-3
    scaling: float = 5e-4
    rotation: float = 1e-4
    pose: float = 1e-4
    pose_final: float = 1e-6
    pose_steps: int = 1000
    """After which the pose's rate stays."""
    features: float = 1e-4
    """Of features in the ft modes where they do not freeze."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Everything that decides a score besides scene, features, mode and seed.

    Attributes:
        name: With its version; part of every result.
        long_side: Of the pictures that points and features are made for.
        render_width: Widest picture that is trained on and scored; None: as `long_side`.
        warm_steps: Of the warm start.
        steps: Of the photometric stage.
        baseline_steps: Of the InstantSplat baseline, which has no warm start.
        warm_rate: First and last rate of the warm start, log-linear.
        rates: Of the photometric stage.
        baseline_pose: First and last pose rate of the baseline.
        ssim_weight: ``w`` in ``(1 - w) L1 + w (1 - SSIM)``.
        scale_penalty: Weight of the drift of log scales for ``iuv`` and ``iuvrgb``.
        components: Principal components kept; None: features as they are. Fewer where there are
            fewer channels or tokens, unless `all_components`.
        all_components: Refuse features of fewer channels or tokens than `components`.
        layer_norm: Read the last layer through the model's final norm; False reads what the
            published table reads.
        hidden: Width of a head; the input's where ``narrow_pixel_readout``.
        shared_focal: One focal length and centred principal points, as the reference has them.
        unit_world: The cloud's median depth becomes 1 and its cameras' mean the origin.
        depth_steps: Of the splats whose expected depth stands for depth, where only cameras are
            known.
        pose_steps: Of the search for test poses.
        pose_translation: Rate of the translation in that search.
        pose_rotation: Rate of the quaternion in that search.
        mask_tolerance: How far depths may disagree where a test pixel is visible.
        lpips: Trunk of LPIPS.
        published_videos: Paths by the reference's formulas and depth in its colours; otherwise
            paths that are safe for any capture, and turbo.
        train_views: Most training views, where the data gives no split.
        test_views: Most test views, where the data gives no split; None: all others.
        quirks: See `Quirks`.
    """

    name: str
    long_side: int = 512
    render_width: int | None = 1600
    warm_steps: int = 1000
    steps: int = 7000
    baseline_steps: int = 7000
    warm_rate: tuple[float, float] = (1e-2, 1e-4)
    rates: Rates = field(default_factory=Rates)
    baseline_pose: tuple[float, float] = (1e-5, 1e-7)
    ssim_weight: float = 0.2
    scale_penalty: float = 0.1
    components: int | None = 256
    all_components: bool = False
    layer_norm: bool = True
    hidden: int = 256
    shared_focal: bool = False
    unit_world: bool = True
    depth_steps: int = 2000
    pose_steps: int = 500
    pose_translation: float = 3e-4
    pose_rotation: float = 1e-4
    mask_tolerance: float = 0.01
    lpips: str = "vgg"
    published_videos: bool = False
    train_views: int = 6
    test_views: int | None = 12
    quirks: Quirks = field(default_factory=Quirks)

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: If a number is out of range.
        """
        low = {"long_side": 32, "warm_steps": 0, "steps": 1, "baseline_steps": 1, "hidden": 1}
        low |= {"pose_steps": 0, "train_views": 1}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"{name} of a probing protocol must be at least {least}, got "
                    f"{getattr(self, name)}; raise it"
                )
        if self.components is not None and self.components < 1:
            raise InputError(
                f"components must be at least 1, or null for none, got {self.components}"
            )
        if self.components is None and self.quirks.needs_pca:
            raise InputError(
                "features without PCA are refused by the quirk needs_pca; switch it off"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


_OURS = Protocol(name="sightline-1")

PROTOCOLS: dict[str, Protocol] = {
    "feat2gs-v1": Protocol(
        name="feat2gs-v1",
        all_components=True,
        layer_norm=False,
        shared_focal=True,
        unit_world=False,
        published_videos=True,
        test_views=None,
        quirks=_PUBLISHED_QUIRKS,
    ),
    "sightline-1": _OURS,
    "sightline-1-fast": replace(
        _OURS,
        name="sightline-1-fast",
        long_side=128,
        render_width=None,
        warm_steps=100,
        steps=400,
        baseline_steps=400,
        # A fifteenth of the steps: rates go up by about the root of that.
        rates=Rates(
            xyz=6.4e-5,
            xyz_final=6.4e-7,
            xyz_steps=1700,
            f_dc=1e-3,
            f_rest=5e-5,
            opacity=2e-2,
            scaling=2e-3,
            rotation=4e-4,
            pose=1e-4,
            pose_steps=60,
        ),
        depth_steps=300,
        pose_steps=50,
        pose_translation=1e-3,
        pose_rotation=4e-4,
        train_views=4,
        test_views=3,
    ),
}
"""Published, ours, and ours for machines without a GPU."""


def find_protocol(name: str, changes: Mapping[str, Any] | None = None) -> Protocol:
    """Return a protocol by name, with some of its fields changed.

    Args:
        name: A key of `PROTOCOLS`; ``fast`` stands for ``sightline-1-fast``.
        changes: Field -> value; ``quirks`` and ``rates`` are mappings of their own, and ``quirks``
            takes ``Q14`` as well as names. A changed protocol is called ``NAME+changes``.

    Raises:
        UnknownNameError: If the protocol or a field is unknown.
        InputError: If a value is of the wrong kind or out of range.
    """
    name = "sightline-1-fast" if name == "fast" else name
    if name not in PROTOCOLS:
        raise UnknownNameError("probing protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    if not changes:
        return protocol
    values = dict(changes)
    for part in ("quirks", "rates"):
        if part in values:
            values[part] = _changed(getattr(protocol, part), dict(values[part]), part)
    changed = _changed(protocol, values, "protocol")
    if changed == protocol:
        return protocol
    return replace(changed, name=values.get("name", f"{name}+changes"))


def _changed(record: Any, values: dict[str, Any], what: str) -> Any:  # noqa: ANN401
    values = {QUIRKS.get(key, key): value for key, value in values.items()}
    known = {item.name for item in fields(record)}
    for key, value in values.items():
        if key not in known:
            raise UnknownNameError(f"field of the {what}", key, known)
        now = getattr(record, key)
        number = isinstance(now, (int, float)) and not isinstance(now, bool)
        wanted = (int, float) if number else (str, bool, int, tuple, list, type(now))
        if isinstance(now, bool) != isinstance(value, bool) or (
            value is not None and not isinstance(value, wanted)
        ):
            raise InputError(
                f"{key} of the {what} must be like {now!r}, got {value!r}; change the value"
            )
        if isinstance(now, tuple):
            values[key] = tuple(float(v) for v in value or ())
        elif isinstance(now, float) and value is not None:
            values[key] = float(value)
    return replace(record, **values)
