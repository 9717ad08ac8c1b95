import sys

from sharding.models import KINDS
from sharding.table import main

sys.exit(main(sys.argv[1:] or list(KINDS)))
