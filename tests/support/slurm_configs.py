"""Configuration files of a `SlurmLab`, to be filled in with its folder, sizes and times."""

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/run/spool.%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout={node_timeout}
SlurmctldTimeout=30
MinJobAge=1800
KillWait={kill_wait}
InactiveLimit=0
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={folder}/munge/sock
AccountingStorageEnforce=associations,limits
AccountingStorageTRES=gres/gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[17001-{last_port}] CPUs={cpus} Boards=1 \
SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory_mb} Gres=gpu:h100:{gpus} State=UNKNOWN
PartitionName=gpu      Nodes=ALL Default=YES MaxTime=24:00:00 State=UP PriorityTier=10  PreemptMode=OFF
PartitionName=urgent   Nodes=ALL MaxTime=24:00:00 State=UP PriorityTier=100 PreemptMode=OFF
PartitionName=scavenge Nodes=ALL MaxTime=24:00:00 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=killable Nodes=ALL MaxTime=24:00:00 State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime={grace}
"""
GRES_CONF = "NodeName=node[1-{nodes}] Name=gpu Type=h100 File={folder}/gpu/nvidia[0-{last_gpu}]\n"
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
DebugLevel=info
"""
