# SPDX-License-Identifier: BSD-3-Clause
"""From a deployed graph to hardware; the only part of the project that imports FINN."""
