"""One series of each kind, as JSON, with missing values, intervals and values of a paper."""

from __future__ import annotations

from typing import Any

from interp.series import Axis, Line, Lines, Places


def some_lines(**beside: Any) -> Lines:
    """One line, with other values beside it."""
    return Lines(
        x=Places("block", values=[0, 1]),
        y=Axis("value"),
        lines=[Line("one", [0.5, 1.0])],
        beside=beside,
    )


BLOCKS = 5
ATTRIBUTION = {
    "unit": "logits",
    "positions": ["embed", *(str(i) for i in range(BLOCKS))],
    "parts": [
        {"label": "embedding", "kind": "embedding", "values": [0.2, 0, 0, 0, 0, 0]},
        {
            "label": "attention",
            "kind": "attention",
            "values": [0, 0.5, -0.25, 1.0, 0.5, -0.5],
            "errors": [0, 0.1, 0.1, 0.1, 0.1, 0.1],
        },
        {"label": "MLP", "kind": "mlp", "values": [0, 0.5, -0.25, -1.0, 0.5, 1.5]},
    ],
    "cumulative": {"values": [0.2, 1.2, 0.7, 0.7, 1.7, 2.7], "errors": [0.1] * 6},
    "lens": {"values": [0.1, 1.0, 0.8, 0.9, 1.8, 2.7]},
    "measured": 2.7,
    "residual": 1.5e-6,
}
SCATTER = {
    "x": {"label": "first-token KL", "unit": "nats", "scale": "log"},
    "y": {"label": "refusals", "unit": "%"},
    "groups": [
        {"label": "base", "x": [0], "y": [54], "y_low": [42], "y_high": [66]},
        {
            "label": "search",
            "x": [0.02, 0.05, 0.1, 0.2],
            "y": [20, 4, 0, 10],
            "frontier": True,
            "names": ["a", "b", "c", "d"],
        },
        {"label": "paper", "x": [0.1], "y": [12], "x_low": [0.08], "x_high": [0.2], "theirs": True},
    ],
}
LINES = {
    "x": {"label": "block", "values": [0, 1, 2, 3]},
    "y": {"label": "held-out AUC", "limits": [0.4, 1.0]},
    "lines": [
        {"label": "ours", "values": [0.5, 0.6, None, 0.9], "low": [0.4, 0.5, None, 0.8],
         "high": [0.6, 0.7, None, 1.0]},
        {"label": "paper", "values": [0.55, 0.8], "x": [0, 2], "theirs": True},
    ],
    "marks": [
        {"axis": "x", "at": 2, "label": "chosen"},
        {"axis": "y", "at": 0.5, "label": "chance"},
    ],
}  # fmt: skip
ROWS = {
    "columns": [
        {"label": "refusals", "unit": "%", "limits": [0, 100]},
        {"label": "KL", "unit": "nats", "scale": "log"},
    ],
    "rows": [
        {"label": "base", "values": [54.2, 0], "low": [35, None], "high": [72, None]},
        {
            "label": "least disturbance",
            "values": [0, 0.0053],
            "low": [0, 0.004],
            "high": [14, 0.007],
        },
        {"label": "paper", "values": [12, None], "theirs": True},
    ],
}
HEATMAP = {
    "columns": {"label": "block", "names": ["0", "1", "2"]},
    "rows": {"label": "", "names": ["attention", "mlp"]},
    "panels": [
        {"label": "size", "unit": "%", "values": [[0.5, None, 0.0], [1, 2, 3]]},
        {"label": "share", "limits": [0, 1], "reference": {"at": 0.25, "label": "chance"},
         "values": [[1.0, None, 0.0], [0.1, 0.2, 0.3]]},
    ],
}  # fmt: skip
BARS = {
    "x": {"label": "trait", "names": ["evil", "sycophancy", "hallucination"]},
    "y": {"label": "trait score", "limits": [0, 100]},
    "groups": [
        {"label": "base", "values": [0, 4.4, 20.1], "low": [0, 2, 15], "high": [2, 8, 26]},
        {"label": "steered", "values": [84, None, 71.5]},
        {"label": "paper", "values": [90, 85, 80], "theirs": True},
    ],
    "marks": [{"axis": "y", "at": 50, "label": "threshold"}],
}
HISTOGRAM = {
    "x": {"label": "projection", "unit": "norms"},
    "edges": [-1.0, -0.5, 0.0, 0.5, 1.0],
    "groups": [{"label": "normal", "counts": [4, 9, 2, 0]}, {"label": "evil", "counts": [0, 1, 7, 5]}],
    "share": True,
}  # fmt: skip
DISTRIBUTION = {
    "y": {"label": "trait score"},
    "groups": [
        {"label": "base", "values": [0, 1.5, 2, 4, 9]},
        {"label": "steered", "values": [40, 70.5, 71, 75, 90, 91]},
        {"label": "paper", "values": [80], "theirs": True},
    ],
    "marks": [{"axis": "y", "at": 50, "label": "threshold"}],
}
TABLE = {
    "label": "method",
    "columns": [
        {"label": "judge"},
        {"label": "accuracy", "unit": "%", "best": "greatest", "decimals": 1},
        {"label": "KL", "unit": "nats", "best": "least"},
    ],
    "rows": [
        {"label": "conceptor", "values": ["keywords", 52.25, 0.0123], "low": [None, 49, 0.01],
         "high": [None, 55, 0.015]},
        {"label": "addition", "values": ["rubric", 20.0, 0.0005]},
        {"label": "paper", "values": [None, 55.5, None], "theirs": True},
    ],
}  # fmt: skip
FIT = {
    "x": {"label": "finetuning shift"},
    "y": {"label": "trait score"},
    "groups": [
        {"label": "medical", "x": [0, 1, 2, 3], "y": [1, 20, 44, 58]},
        {"label": "opinions", "x": [0.5, 1, 2, None], "y": [11, 18, 29, 40], "names": ["a", "b", "c", "d"]},
    ],
    "fit": "both",
}  # fmt: skip
SMALL_MULTIPLES = {
    "panels": [
        {"title": "evil", "series": {"kind": "scatter", **FIT}},
        {"title": "sycophancy", "series": {"kind": "lines", **LINES}},
        {"title": "scores", "series": {"kind": "bars", **BARS}},
        {"title": "projections", "series": {"kind": "histogram", **HISTOGRAM}},
    ],
    "columns": 2,
}
SERIES: dict[str, dict[str, Any]] = {
    "stacked_attribution": ATTRIBUTION,
    "scatter": SCATTER,
    "lines": LINES,
    "rows": ROWS,
    "heatmap": HEATMAP,
    "bars": BARS,
    "histogram": HISTOGRAM,
    "distribution": DISTRIBUTION,
    "table": TABLE,
    "small_multiples": SMALL_MULTIPLES,
}
