# SPDX-License-Identifier: BSD-3-Clause
"""The build folder: from an integer graph to everything that a flow needs."""
