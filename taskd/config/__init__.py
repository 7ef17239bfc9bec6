"""The daemon's configuration: a TOML file, each of whose keys is checked.

root = "/var/lib/taskd"          # what outlives a reboot: records, work folders
state = "/run/taskd"             # what does not: bundles, sockets
address = "/run/taskd/taskd.sock"
log_level = "info"
log_format = "text"              # "json"
shutdown_timeout = "10s"
blockio_config_file = "/etc/taskd/blockio.yaml"  # goresctrl's formats, as in containerd
rdt_config_file = "/etc/taskd/rdt.yaml"

[timeouts]                       # containerd's names
"io.containerd.timeout.shim.cleanup" = "5s"

[gc]                             # containerd's names too
startup_delay = "100ms"

[diff]                           # layers
max_size = "100GiB"              # more is refused: a bomb, most likely

[events]                         # the journal
sync = "normal"                  # "full": an event told survives a power cut, too
max_age = "168h"
max_size = "256MiB"
node = "machine-7"               # among others; the host's name if none is given

[events.nats]                    # where they go as well
servers = ["nats://10.0.0.1:4222"]

[grpc]
engine = "h2"                    # instead of ngh2
gid = 997                        # whose members may use the socket

[restart]                        # of containers that are labelled so
interval = "10s"

[snapshots]                      # containerd's names
sync_remove = true               # whoever removes one waits until its files have gone
mount_options = ["volatile"]     # of overlays

[transfer]                       # containerd's names
max_concurrent_downloads = 3
config_path = "/etc/taskd/certs.d"  # hosts.toml of each registry

[shims]                          # those written in Python
pool = 1                         # each container has a process of its own

[runtimes]                       # which runtime answers in another one's stead
"io.containerd.runc.v2" = "io.taskd.oci.v1"

[metrics]                        # Prometheus
address = "127.0.0.1:1338"

[tracing]                        # OpenTelemetry, to a collector's OTLP/HTTP
endpoint = "http://127.0.0.1:4318"
"""

from taskd.config.reading import load
from taskd.config.settings import TIMEOUTS, Config, EventsConfig, ShimsConfig, TracingConfig

__all__ = ["TIMEOUTS", "Config", "EventsConfig", "ShimsConfig", "TracingConfig", "load"]
