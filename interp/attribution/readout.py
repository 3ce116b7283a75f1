"""From the stream to a margin of logits: the final norm, the unembedding, and both of them frozen.

``margin(x) = logit_scale · Σ_k w_k (W_k · norm(x) + β_k)``, with weights ``1/n⁺`` on positive
openers and ``−1/n⁻`` on negative ones: the model's own logit difference, before any soft cap.
With the norm's scale ``s(x)`` held fixed it is linear in x, which is what attribution needs (Elhage
et al. 2021, "A Mathematical Framework for Transformer Circuits"). Formulas run in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attribution.openers import Openers
from interp.backends.protocol import Backend
from interp.errors import InterpError
from interp.models.anatomy import Anatomy
from interp.sites import Site
from interp.types import Acts, TokenBatch

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0)
PROBE_SCALES = (1.0, 1e-2)  # the second is small enough for the norm's ε to show
PROBES = 4
CHECKED_PROMPTS = 2
TOLERANCE, COARSE_TOLERANCE = 1e-4, 3e-2  # relative: fp32, and half precisions


@dataclass(frozen=True, slots=True, eq=False)
class FinalNorm:
    """``norm(x) = gain ⊙ s(x) · (x − c·mean x) + bias``, ``s(x) = 1/√(mean (x − c·mean x)² + ε)``.

    centred: c = 1 (LayerNorm) or 0 (RMSNorm). gain: offset included (Gemma: ``1 + w``).
    """

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    epsilon: float
    centred: bool

    def scale(self, resid: Acts) -> Float[Tensor, " n"]:
        """``s(x)`` of each row."""
        return (self._centre(resid).square().mean(-1) + self.epsilon).rsqrt()

    def __call__(self, resid: Acts) -> Acts:
        return self.gain * self._centre(resid) * self.scale(resid)[:, None] + self.bias

    def through(self, vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """v with ``v·x = vector · (gain ⊙ (x − c·mean x))``: the linear part, transposed."""
        return self._centre(self.gain * vector)

    def _centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.centred else x


@torch.no_grad()
def fit_norm(
    module: nn.Module, anatomy: Anatomy, device: torch.device, dtype: torch.dtype
) -> FinalNorm:
    """The formula that reproduces the final norm's output on random input.

    Raises InterpError when neither RMSNorm nor LayerNorm does, with the family's offset.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    ones, zeros = torch.ones(anatomy.d_model).double(), torch.zeros(anatomy.d_model).double()
    gain = ones if weight is None else _wide(weight) + anatomy.family.final_norm_offset
    shift = zeros if bias is None else _wide(bias)
    noise = torch.randn(PROBES, anatomy.d_model, generator=torch.Generator().manual_seed(0)) + 0.5
    inputs = torch.cat([noise * scale for scale in PROBE_SCALES]).to(device, dtype)
    wanted = _wide(module(inputs))
    own = (getattr(module, n, None) for n in ("variance_epsilon", "eps", "epsilon"))
    for epsilon in (*(e for e in own if e is not None), *EPSILONS):
        for centred in (False, True):
            norm = FinalNorm(gain, shift, float(epsilon), centred)
            if _distance(norm(_wide(inputs)), wanted) < tolerance(dtype):
                return norm
    raise InterpError(
        f"the final norm of {anatomy.model_type} ({type(module).__name__}) is neither an RMSNorm "
        f"nor a LayerNorm with offset {anatomy.family.final_norm_offset:g}; check final_norm and "
        f"final_norm_offset of the family that lists {anatomy.model_type!r} in interp/models/"
    )


def tolerance(dtype: torch.dtype) -> float:
    """How far float64 formulas may be from a model that computes in ``dtype``, relatively."""
    return TOLERANCE if dtype in (torch.float32, torch.float64) else COARSE_TOLERANCE


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """The margin as a function of the stream that enters the final norm.

    rows: unembedding rows of the openers, positive ones first; head_bias: their biases; weights: see
    :attr:`Openers.weights`. module, device, dtype: the model's own norm, to measure with.
    """

    norm: FinalNorm
    rows: Float[Tensor, "k d"]
    head_bias: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]
    logit_scale: float
    cap: float | None
    module: nn.Module
    device: torch.device
    dtype: torch.dtype

    @property
    def direction(self) -> Float[Tensor, " d"]:
        """v with ``margin(x) = s(x) · v·x + constant``."""
        return self.logit_scale * self.norm.through(self.weights @ self.rows)

    @property
    def constant(self) -> float:
        """What the biases of norm and unembedding add, whatever the prompt."""
        biases = self.rows @ self.norm.bias + self.head_bias
        return self.logit_scale * (self.weights @ biases).item()

    def scale(self, resid: Acts) -> Float[Tensor, " n"]:
        return self.norm.scale(resid.double())

    def margin(self, resid: Acts) -> Float[Tensor, " n"]:
        """The logit difference that the stream ``[n, d]`` reads out as, before any soft cap."""
        return self.opener_logits(self.norm(resid.double())) @ self.weights

    @torch.no_grad()
    def measured(self, resid: Acts) -> Float[Tensor, " n"]:
        """The same through the model's own norm module: what the model computes from its stream."""
        given = resid.to(self.device)
        return self.opener_logits(_wide(self.module(given))) @ self.weights

    def opener_logits(self, normed: Acts) -> Float[Tensor, "n k"]:
        """Logits of the openers from the final norm's output, before any soft cap."""
        return self.logit_scale * (normed @ self.rows.T + self.head_bias)


def bind_readout(backend: Backend, openers: Openers) -> Readout:
    """The readout of a model.

    Raises InterpError for a token outside the vocabulary, for an unembedding that is offloaded or
    quantised, and for a final norm that is not what its family says.
    """
    anatomy = backend.anatomy
    head = backend.model.get_submodule(anatomy.unembed)
    weight: Tensor = head.weight  # type: ignore[assignment]
    if weight.is_meta or not weight.is_floating_point() or weight.dtype.itemsize == 1:
        raise InterpError(
            f"{anatomy.unembed} is offloaded or quantised; attribution reads its rows: load the "
            "model without disk offload and leave the unembedding unquantised"
        )
    if outside := [i for i in openers.ids if not 0 <= i < len(weight)]:
        raise InterpError(f"token {outside[0]} is outside the vocabulary of {len(weight)}")
    ids = torch.tensor(openers.ids, device=weight.device)
    bias = getattr(head, "bias", None)
    module = backend.model.get_submodule(anatomy.final_norm)
    return Readout(
        norm=fit_norm(module, anatomy, weight.device, weight.dtype),
        rows=_wide(weight[ids]),
        head_bias=torch.zeros(len(ids)).double() if bias is None else _wide(bias[ids]),
        weights=openers.weights,
        logit_scale=anatomy.logit_scale,
        cap=anatomy.logit_cap,
        module=module,
        device=weight.device,
        dtype=weight.dtype,
    )


def check_readout(backend: Backend, readout: Readout, openers: Openers, batch: TokenBatch) -> None:
    """Compare the readout with the model's own logits on two prompts.

    Raises InterpError when they differ: then the family misses a scale, a cap, an offset or a norm.
    """
    anatomy, few = backend.anatomy, batch.rows(0, CHECKED_PROMPTS)
    last = Site.resid_post(anatomy.n_blocks - 1)
    ours = readout.opener_logits(readout.norm(backend.capture(few, [last])[last].double()))
    if readout.cap is not None:
        ours = readout.cap * torch.tanh(ours / readout.cap)
    theirs = backend.logits(few)[:, list(openers.ids)].double()
    off = (ours - theirs).abs().max().item()
    if off > tolerance(readout.dtype) * max(1.0, theirs.abs().max().item()):
        raise InterpError(
            f"final norm and unembedding, as described, miss the logits of {anatomy.model_type} "
            f"by {off:.2g}; check final_norm, logit_scale and logit_cap of the family that lists "
            f"{anatomy.model_type!r} in interp/models/"
        )
