"""One file for each figure that is claimed anywhere; every one takes ``--quick`` and ``--json``."""
