/* libnvidia-ml.so.1 of the card that computes nothing: from 2.12 on PyTorch asks it about links between cards. */
#define API __attribute__((visibility("default")))
#define NOT_SUPPORTED 3 /* nvml.h, nvmlReturn_t */

API int nvmlInit_v2(void) { return 0; }
API int nvmlShutdown(void) { return 0; }

API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  static char one[64];
  (void)bus;
  *device = one;
  return 0;
}

API int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = 13000;
  return 0;
}

API int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) {
  (void)device, (void)processes;
  *count = 0;
  return 0;
}

API int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
API int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }
API int nvmlDeviceGetGpuFabricInfoV(void) { return NOT_SUPPORTED; }
