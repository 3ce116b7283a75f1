"""Persona vectors: one difference of means for the embedding and every block, and what is read off it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection, PersonaError, SiteError
from interp.evaluate import geometry
from interp.export.tensors import plain
from interp.files import publish_directory, write_json
from interp.models.ruler import Ruler
from interp.sites import Site

RESPONSE_AVG = "response_avg"
REDUCTIONS = (RESPONSE_AVG, "prompt_avg", "prompt_last")
"""Mean over response tokens, mean over prompt tokens but the first, last prompt token."""
MANIFEST = "persona.json"
FORMAT = "interp persona vector 1"
BLOCK_OUTPUT, FINAL_NORM = "block output", "final norm"
_FILE = re.compile(r"(?P<trait>.+)_(?P<reduction>response_avg|prompt_avg|prompt_last)_diff")

Rows = Float[Tensor, "rows d_model"]


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """Unnormalised differences of mean activations, positive less negative, of one trait.

    vectors: reduction → ``[n_blocks + 1, d_model]``; row 0 is ``embed``, row ℓ the output of block ℓ − 1
    (``lm.resid_post[ℓ - 1]``), which is the paper's layer ℓ. reduction: the one that all methods use
    (:data:`REDUCTIONS`). last_row: ``block output``, or ``final norm`` in files of the paper's authors, whose
    last row is no place in the stream and is refused. record: trait, counts, judge, hashes, in JSON values.

    Raises PersonaError for rows of another shape or that are not finite.
    """

    trait: str
    vectors: Mapping[str, Tensor]
    reduction: str = RESPONSE_AVG
    last_row: str = BLOCK_OUTPUT
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reduction not in self.vectors:
            raise PersonaError(
                f"{self.trait} has no {self.reduction}; it has {', '.join(self.vectors)}"
            )
        shapes = {tuple(rows.shape) for rows in self.vectors.values()}
        if len(shapes) != 1 or any(len(s) != 2 or s[0] < 2 for s in shapes):
            raise PersonaError(
                f"persona vectors are [n_blocks + 1, d_model], these are {sorted(shapes)}"
            )
        if not all(bool(rows.isfinite().all()) for rows in self.vectors.values()):
            raise PersonaError(
                f"the vectors of {self.trait} hold NaN or infinity; extract them again"
            )

    def using(self, reduction: str) -> PersonaVector:
        """The same with another reduction. Raises PersonaError for one that is not there."""
        return replace(self, reduction=reduction)

    @property
    def rows(self) -> Rows:
        """``[n_blocks + 1, d_model]``; the last row of an authors' file has been through the final norm."""
        return self.vectors[self.reduction]

    @property
    def sha256(self) -> str:
        """Hash of :attr:`rows` in float32."""
        return hashlib.sha256(self.rows.float().cpu().contiguous().numpy().tobytes()).hexdigest()

    @property
    def n_blocks(self) -> int:
        return len(self.rows) - 1

    def site(self, layer: int) -> Site:
        """The place of the paper's layer, from 1 on. SiteError for 0, which is the embedding, and others."""
        if not 1 <= layer <= self.n_blocks:
            raise SiteError(
                f"layer {layer} is none: layers of the paper are 1 … {self.n_blocks}, and layer ℓ is the "
                "output of block ℓ − 1"
            )
        return Site.resid_post(layer - 1)

    def at(self, site: Site) -> Float[Tensor, " d_model"]:
        """The vector at ``embed`` or a ``resid_post``. SiteError for other places."""
        if site.kind not in ("embed", "resid_post") or site.block >= self.n_blocks:
            raise SiteError(
                f"a persona vector of {self.n_blocks} blocks has no row for {site}; it has embed and "
                f"resid_post[0 … {self.n_blocks - 1}]"
            )
        row = site.block + 1
        if row == self.n_blocks and self.last_row == FINAL_NORM:
            raise SiteError(
                f"the last row of this file is the output of the final norm and not {site}; steer at "
                "another block, or extract the vector again"
            )
        return self.rows[row]

    def project(
        self, activations: Float[Tensor, "*batch d_model"], site: Site
    ) -> Float[Tensor, "*batch"]:
        """``(a · v) / ‖v‖`` of activations at a site. NoDirection where v is zero."""
        return projection(activations, self.at(site))

    def increments(self) -> Float[Tensor, "block d_model"]:
        """``v_ℓ − v_{ℓ−1}`` for every block; those of blocks j … k sum to ``v_{k+1} − v_j``.

        Raises SiteError for a file whose last row is behind the final norm.
        """
        self.at(Site.resid_post(self.n_blocks - 1))
        return self.rows.diff(dim=0)

    def check(self, ruler: Ruler, d_model: int) -> None:
        """Raise PersonaError unless the vectors have the shape of a model."""
        wanted = (ruler.n_blocks + 1, d_model)
        if tuple(self.rows.shape) != wanted:
            raise PersonaError(
                f"this persona vector is {list(self.rows.shape)}, this model needs {list(wanted)}; extract "
                "it on this model"
            )
        if self.last_row == FINAL_NORM and ruler.shift == 0:
            raise PersonaError(
                f"hidden_states of {ruler.model_type} have no entry for the embedding, so that rows of this "
                "file lie one block later than elsewhere; extract the vector again"
            )

    # --- files --------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> Path:
        """Write ``TRAIT_REDUCTION_diff.pt`` files, as the authors name them, and what is known about them.

        All or nothing: the directory appears once it is whole, and replaces an older persona vector there.
        Raises PersonaError where other files would be lost.
        """
        from tempfile import TemporaryDirectory

        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_target(target)
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as parent:
            stage = Path(parent) / "stage"
            stage.mkdir()
            for reduction, rows in self.vectors.items():
                torch.save(rows.float().cpu().contiguous(), stage / self._file(reduction))
            write_json(stage / MANIFEST, self.as_json())
            publish_directory(stage, target)
        return target

    def _file(self, reduction: str) -> str:
        return f"{re.sub(r'[^0-9A-Za-z._-]+', '_', self.trait)}_{reduction}_diff.pt"

    def as_json(self) -> dict[str, Any]:
        """All but the vectors."""
        return {
            "format": FORMAT,
            "trait": self.trait,
            "reduction": self.reduction,
            "last_row": self.last_row,
            "files": {reduction: self._file(reduction) for reduction in self.vectors},
            "record": plain(self.record, "the record", PersonaError),
        }

    @classmethod
    def load(cls, path: Path | str) -> PersonaVector:
        """A persona vector: the directory that :meth:`save` wrote, or one ``.pt`` file of the authors.

        Raises PersonaError for anything else. No code in a file is run.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            return cls._of_directory(path)
        named = _FILE.fullmatch(path.stem)
        reduction = named["reduction"] if named else RESPONSE_AVG
        beside = path.parent / MANIFEST
        if beside.is_file() and path.name in _manifest(beside)["files"].values():
            return cls._of_directory(path.parent).using(reduction)
        trait = named["trait"] if named else path.stem
        return cls(trait, {reduction: _tensor(path)}, reduction, FINAL_NORM)

    @classmethod
    def _of_directory(cls, folder: Path) -> PersonaVector:
        about = _manifest(folder / MANIFEST)
        vectors = {name: _tensor(folder / file) for name, file in about["files"].items()}
        return cls(about["trait"], vectors, about["reduction"], about["last_row"], about["record"])


def projection(
    activations: Float[Tensor, "*batch d_model"], vector: Float[Tensor, " d_model"]
) -> Float[Tensor, "*batch"]:
    """``(a · v) / ‖v‖``, in float32. Raises NoDirection where v is zero or not finite."""
    wide = vector.float()
    length = wide.norm()
    if not bool(length > 0) or not bool(length.isfinite()):
        raise NoDirection("nothing can be projected on a vector that is zero or not finite")
    return activations.float() @ (wide / length).to(activations.device)


def cosines(personas: Sequence[PersonaVector], site: Site) -> Float[Tensor, "n n"]:
    """Cosines between the vectors of several traits at one site. NoDirection for a vector that is zero."""
    rows = torch.stack([persona.at(site).float() for persona in personas])
    if not bool(rows.any(dim=-1).all()):
        raise NoDirection(f"a persona vector is zero at {site}; choose another place")
    return geometry.cosines(rows).float()


def check_target(folder: Path) -> None:
    """Raise PersonaError where writing a persona vector to ``folder`` would lose anything else."""
    if not folder.exists():
        return
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else {folder.name}
    manifest = folder / MANIFEST
    ours = {MANIFEST, *_manifest(manifest)["files"].values()} if manifest.is_file() else set()
    if other := sorted(present - ours):
        raise PersonaError(
            f"{folder} holds {other[0]}, which would be lost; name another directory"
        )


def _manifest(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise KeyError("format")
        kinds = {"trait": str, "reduction": str, "last_row": str, "files": dict, "record": dict}
        if wrong := [key for key, kind in kinds.items() if not isinstance(about[key], kind)]:
            raise KeyError(wrong[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PersonaError(
            f"{path} describes no persona vector ({type(error).__name__}: {error}); give the directory that "
            "`interp persona extract` wrote, or a .pt file"
        ) from None
    return about


def _tensor(path: Path) -> Tensor:
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PersonaError(f"{path} is no file of one tensor: {reason}") from None
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise PersonaError(f"{path} holds no tensor of [n_blocks + 1, d_model]")
    return found.float()
