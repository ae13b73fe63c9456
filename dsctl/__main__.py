"""`python -m dsctl` is `dsctl`."""

import sys

from dsctl.app import main

sys.exit(main())
