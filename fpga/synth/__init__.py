# SPDX-License-Identifier: BSD-3-Clause
"""Synthesis, place and route with open tools."""
