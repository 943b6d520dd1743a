# SPDX-License-Identifier: BSD-3-Clause
"""Simulation of the generated RTL, cycle by cycle."""
