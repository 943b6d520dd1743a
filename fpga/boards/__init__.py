# SPDX-License-Identifier: BSD-3-Clause
"""Boards: parts, tops, host protocols and drivers."""
