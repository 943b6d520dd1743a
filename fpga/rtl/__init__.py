# SPDX-License-Identifier: BSD-3-Clause
"""The accelerator as SystemVerilog."""
