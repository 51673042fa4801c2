"""Everything that can be told of a file of weights, without loading it into memory."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.checkpoints import Checkpoint, read_checkpoint
from sightline.checkpoints.match import broken_names, some
from sightline.models.recognize import Recognition, explain, recognize


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The findings on a file.

    Attributes:
        checkpoint: The file and its tensors.
        recognition: What it is, None when it is of no family known here.
        broken: Tensors that hold NaN or infinity.
        verdict: One sentence.
    """

    checkpoint: Checkpoint
    recognition: Recognition | None
    broken: tuple[str, ...]
    verdict: str

    @property
    def strict(self) -> bool:
        """Whether the file fits a network here tensor by tensor."""
        fits = self.recognition is not None and self.recognition.report.strict
        return fits and not self.broken

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        file, found = self.checkpoint, self.recognition
        weights = file.weights.values()
        plain: dict[str, Any] = {
            "file": str(file.path),
            "kind": file.kind,
            "inside": file.inside,
            "notes": list(file.notes),
            "tensors": len(file.weights),
            "numbers": sum(t.numel() for t in weights),
            "bytes": sum(t.numel() * t.element_size() for t in weights),
            "dtypes": dict(Counter(str(t.dtype).removeprefix("torch.") for t in weights)),
            "strict": self.strict,
            "verdict": self.verdict,
            "broken": list(self.broken),
            "family": None,
        }
        if found is not None:
            report = found.report
            plain |= {
                "family": found.family,
                "names": list(found.names),
                "options": found.options,
                "assumed": list(found.assumed),
                "layout": found.layout,
                "filled": list(found.filled),
                "missing": list(report.missing),
                "unexpected": list(report.unexpected),
                "wrong_shape": list(report.shapes),
                "prefix": report.prefix,
                "outside": report.outside,
                "held": dict(report.held),
            }
        return plain


def check_file(path: str | Path) -> Check:
    """Examine a weights file, a folder or an index; tensors are read one by one.

    Raises:
        InputError: There is no such file.
        FileFormatError: The file is damaged, or needs code to be read.
    """
    checkpoint = read_checkpoint(path)
    found = recognize(checkpoint.weights)
    broken = tuple(broken_names(checkpoint.weights))
    if found is None or not found.report.strict:
        verdict = f"no strict match: {explain(checkpoint.weights)}"
    elif broken:
        verdict = f"{found.title}, but {some(broken)} hold NaN or infinity"
    else:
        verdict = f"strict match: {found.title}"
    return Check(checkpoint=checkpoint, recognition=found, broken=broken, verdict=verdict)
