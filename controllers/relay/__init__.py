# SPDX-License-Identifier: Apache-2.0
"""The managed relay: what it consists of, where it runs, how it is reached. The Mesh's status is written in mesh.py."""
