"""Security contexts that namespaces with the restricted Pod Security Standard admit.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from components.core.kubernetes.resource_kinds import Object

SECCOMP_PROFILE = {"type": "RuntimeDefault"}


def restricted_pod_security(**ids: int) -> Object:
    """Return the security context of a pod: no root, and the runtime's seccomp profile.

    Args:
        ids: ``runAsUser``, ``runAsGroup``, ``fsGroup`` where the image's own user does not do.
    """
    return {"runAsNonRoot": True, **ids, "seccompProfile": dict(SECCOMP_PROFILE)}


def restricted_container_security(**options: bool) -> Object:
    """Return the security context of a container: no capabilities, and no more privileges than it starts with.

    Args:
        options: Fields beyond what the standard demands, such as ``readOnlyRootFilesystem``.
    """
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **options}
