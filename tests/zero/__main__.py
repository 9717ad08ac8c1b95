import sys

from sharding.models import KINDS
from sharding.table import ZERO, main

sys.exit(main(sys.argv[1:] or list(KINDS), ZERO))
