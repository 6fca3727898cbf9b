"""The kinds of objects that this engine works with, and where the API has them. Pure data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object: `api` is its `apiVersion`."""

    api: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "") -> str:
        """Where it is: all, those of a namespace, or one."""
        prefix = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        place = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{prefix}{place}/{self.plural}" + (f"/{name}" if name else "")

    @property
    def head(self) -> dict[str, str]:
        """How its manifests begin."""
        return {"apiVersion": self.api, "kind": self.kind}


NAMESPACE = Kind("v1", "namespaces", "Namespace", namespaced=False)
NODE = Kind("v1", "nodes", "Node", namespaced=False)
POD = Kind("v1", "pods", "Pod")
SECRET = Kind("v1", "secrets", "Secret")
CONFIG_MAP = Kind("v1", "configmaps", "ConfigMap")
SERVICE = Kind("v1", "services", "Service")
SERVICE_ACCOUNT = Kind("v1", "serviceaccounts", "ServiceAccount")
CLAIM = Kind("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
EVENT = Kind("v1", "events", "Event")
LIMIT_RANGE = Kind("v1", "limitranges", "LimitRange")
RESOURCE_QUOTA = Kind("v1", "resourcequotas", "ResourceQuota")
JOB = Kind("batch/v1", "jobs", "Job")
DEPLOYMENT = Kind("apps/v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps/v1", "replicasets", "ReplicaSet")
DAEMON_SET = Kind("apps/v1", "daemonsets", "DaemonSet")
AUTOSCALER = Kind("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")
INGRESS = Kind("networking.k8s.io/v1", "ingresses", "Ingress")
NETWORK_POLICY = Kind("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy")
ENDPOINT_SLICE = Kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
ROLE_BINDING = Kind("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding")
NODE_METRICS = Kind("metrics.k8s.io/v1beta1", "nodes", "NodeMetrics", namespaced=False)
CLUSTER_QUEUE = Kind("kueue.x-k8s.io/v1beta1", "clusterqueues", "ClusterQueue", namespaced=False)
LOCAL_QUEUE = Kind("kueue.x-k8s.io/v1beta1", "localqueues", "LocalQueue")
RESOURCE_FLAVOR = Kind("kueue.x-k8s.io/v1beta1", "resourceflavors", "ResourceFlavor", namespaced=False)
HTTP_ROUTE = Kind("gateway.networking.k8s.io/v1", "httproutes", "HTTPRoute")
KNATIVE_SERVICE = Kind("serving.knative.dev/v1", "services", "Service")
INFERENCE_SERVICE = Kind("serving.kserve.io/v1beta1", "inferenceservices", "InferenceService")
LLM_SERVICE = Kind("serving.kserve.io/v1alpha1", "llminferenceservices", "LLMInferenceService")
GATEWAY = Kind("gateway.networking.k8s.io/v1", "gateways", "Gateway")
INGRESS_CLASS = Kind("networking.k8s.io/v1", "ingressclasses", "IngressClass", namespaced=False)
STORAGE_CLASS = Kind("storage.k8s.io/v1", "storageclasses", "StorageClass", namespaced=False)
ACCESS_REVIEW = Kind(
    "authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)
MIDDLEWARE = Kind("traefik.io/v1alpha1", "middlewares", "Middleware")
