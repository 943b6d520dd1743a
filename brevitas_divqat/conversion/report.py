# SPDX-License-Identifier: BSD-3-Clause
"""What a conversion did, and what of the result FINN cannot build."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_divqat.export import Finding
from brevitas_divqat.export.rules import SEVERITIES, Severity

__all__ = ["Change", "ConversionReport", "Problem"]


@dataclass(frozen=True)
class Change:
    """One place of the network that was converted.

    Attributes:
        layer: qualified name in the result.
        was: what stood there; empty where a quantizer was inserted.
        became: what stands there now.
        bits: bit width of its weights or levels; None where it has none of its own.
    """

    layer: str
    was: str
    became: str
    bits: int | None = None

    def __str__(self) -> str:
        """Return it as one line."""
        width = "" if self.bits is None else f", {self.bits} bits"
        return f"{self.layer}: {self.was or 'inserted'} -> {self.became}{width}"


@dataclass(frozen=True)
class Problem:
    """One place of the result that FINN cannot build, or that costs something.

    Attributes:
        layer: qualified name.
        why: what is there.
        remedy: what to do.
        severity: what it leads to; see docs/check.md.
    """

    layer: str
    why: str
    remedy: str
    severity: Severity = "breaks FINN"

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.severity}: {self.layer}: {self.why}: {self.remedy}"

    @classmethod
    def of(cls, finding: Finding) -> Problem:
        """Turn a finding of ``export.check`` into a problem."""
        return cls(
            finding.layer, f"{finding.found} ({finding.rule})", finding.remedy, finding.severity
        )


@dataclass(frozen=True)
class ConversionReport:
    """What became of a float network.

    Attributes:
        changes: every layer that was converted or inserted, in the order of the network.
        problems: worst first. Those of the conversion itself, and where an example was given those
            that ``export.check`` finds and that break FINN.
        checked: whether ``export.check`` looked at the result: it needs an example, and a network
            that torch can export, which adaptive pools to odd sizes prevent.
    """

    changes: tuple[Change, ...]
    problems: tuple[Problem, ...]
    checked: bool

    @property
    def buildable(self) -> bool:
        """Whether the result was checked and nothing in it breaks FINN."""
        return self.checked and not any(p.severity == SEVERITIES[0] for p in self.problems)

    def __str__(self) -> str:
        """Return it as lines: changes, problems, and whether the result was checked."""
        lines = [*(str(change) for change in self.changes), "", *(str(p) for p in self.problems)]
        if not self.checked:
            lines.append("not checked: give an example, and replace the adaptive pools named above")
        elif self.buildable:
            lines.append("checked: nothing breaks FINN")
        else:
            lines.append("checked: FINN cannot build it, see above")
        return "\n".join(lines)
