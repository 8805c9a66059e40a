"""Field names of a VM template (KubeVirt v1.9.0), for suggestions. Which fields are allowed, the cluster decides."""

from typing import Final

TEMPLATE_WORDS: Final = frozenset(
    (  # noqa: SIM905 - a hundred lines of a word each would say no more
        # of a VirtualMachine's spec, and of its template's
        "accessCredentials affinity architecture dataVolumeTemplates dnsConfig dnsPolicy domain evictionStrategy hostname "
        "instancetype livenessProbe metadata networks nodeSelector preference priorityClassName readinessProbe runStrategy "
        "schedulerName startStrategy subdomain template terminationGracePeriodSeconds tolerations topologySpreadConstraints "
        "volumes "
        # of a domain
        "chassis clock cpu devices features firmware ioThreads ioThreadsPolicy launchSecurity machine memory resources "
        "cores dedicatedCpuPlacement isolateEmulatorThread maxSockets model numa guestMappingPassthrough realtime sockets "
        "threads guest hugepages pageSize maxGuest limits requests overcommitGuestOverhead bootloader efi bios secureBoot "
        # of devices
        "autoattachGraphicsDevice autoattachMemBalloon autoattachPodInterface autoattachSerialConsole blockMultiQueue disks "
        "filesystems gpus hostDevices inputs interfaces networkInterfaceMultiqueue rng tpm watchdog bootOrder bus cache disk "
        "cdrom lun io serial dedicatedIOThread masquerade bridge sriov macAddress ports "
        # of volumes
        "cloudInitNoCloud cloudInitConfigDrive configMap containerDisk dataVolume downwardAPI emptyDisk ephemeral hostDisk "
        "persistentVolumeClaim secret serviceAccount sysprep image imagePullPolicy imagePullSecret claimName capacity "
        "userData userDataBase64 networkData secretRef "
        # of DataVolumes
        "accessModes pvc source sourceRef storage storageClassName volumeMode"
    ).split()
)
