"""What holds for every test: nothing is fetched, and no figure wants a display."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "agg"}
