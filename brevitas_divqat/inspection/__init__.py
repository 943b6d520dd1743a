# SPDX-License-Identifier: BSD-3-Clause
"""What a Brevitas model really is: effective bits of every layer, and keywords that vanished."""

from __future__ import annotations

from brevitas_divqat.inspection.findings import SummaryWarning
from brevitas_divqat.inspection.injectors import SwallowedKeyword
from brevitas_divqat.inspection.keywords import recorded_keywords, strict_keywords
from brevitas_divqat.inspection.layer_summary import Summary, summary
from brevitas_divqat.inspection.rows import LayerSummary
from brevitas_divqat.inspection.statistics import collecting
from brevitas_divqat.inspection.tracing import copied
from brevitas_divqat.inspection.wrappers import unwrapped

__all__ = [
    "LayerSummary",
    "Summary",
    "SummaryWarning",
    "SwallowedKeyword",
    "collecting",
    "copied",
    "recorded_keywords",
    "strict_keywords",
    "summary",
    "unwrapped",
]
