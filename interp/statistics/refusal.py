"""Statistics of the report figure of the refusal pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from interp.claims import statistics
from interp.series import Row

MAIN, ABLATED, RANDOM = "least-disturbance", "directional ablation", "random direction"


@statistics("report")
def report(rows: Sequence[Row]) -> dict[str, float]:
    """Effects and costs of the edits beside each other, from the rows (percent, nats)."""
    values = {row.label: row.values for row in rows}
    original, ablated = values["original"], values[ABLATED]
    ours, random = values[MAIN], values[RANDOM]
    before = original[0]
    return {
        # Nothing to remove counts as nothing removed.
        "refused_share_left": ours[0] / before if before else 1.0,
        "ablated_share_left": ablated[0] / before if before else 1.0,
        "random_share_left": random[0] / before if before else 0.0,
        "refused_beyond_ablation": ours[0] - ablated[0],
        "over_refused_beyond_original": ours[1] - original[1],
        "kl1_share_of_ablation": ours[2] / ablated[2] if ablated[2] else 1.0,
    }
