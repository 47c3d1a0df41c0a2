/* A card that computes nothing: CUDA's runtime and cuBLAS as far as PyTorch asks for them.
 *
 * Preloaded, these functions go before those of libcudart and libcublas. Memory is handed out and counted as on a
 * card of so much memory; every kernel is launched and none runs. So PyTorch's own caching allocator and all that
 * its CUDA code decides and allocates on the host are the real ones, and only numbers are not computed: what a
 * kernel would have written stays zero.
 *
 * HOLLOW_GIB, HOLLOW_CAPABILITY (as 7.5), HOLLOW_MULTIPROCESSORS and HOLLOW_NAME say which card it is. Processes
 * with the same file HOLLOW_SHARED share its memory, and what a process held is free when it is gone.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define PAGE ((size_t)2 << 20) /* what a card hands out memory in */
#define COPIED ((size_t)1 << 20) /* larger tensors stay zeros: nobody reads them, and pages would be taken here */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t capacity;
static int major = 9, minor = 0, multiprocessors = 132;
static char name[64] = "Hollow H100";
static _Thread_local cudaError_t last_error = cudaSuccess;

#define PROCESSES 256
static struct held { pid_t pid; size_t bytes; } alone[PROCESSES], *held = alone;
static int shared_file = -1;

__attribute__((constructor)) static void begin(void) {
  const char *gib = getenv("HOLLOW_GIB"), *capability = getenv("HOLLOW_CAPABILITY");
  const char *called = getenv("HOLLOW_NAME"), *count = getenv("HOLLOW_MULTIPROCESSORS");
  capacity = (size_t)((gib ? atof(gib) : 79.2) * (1ull << 30));
  if (capability) sscanf(capability, "%d.%d", &major, &minor);
  if (called) snprintf(name, sizeof name, "Hollow %s", called);
  if (count) multiprocessors = atoi(count);
  const char *shared = getenv("HOLLOW_SHARED");
  if (shared && (shared_file = open(shared, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0 &&
      !ftruncate(shared_file, sizeof alone)) {
    void *at = mmap(0, sizeof alone, PROT_READ | PROT_WRITE, MAP_SHARED, shared_file, 0);
    if (at != MAP_FAILED) held = at;
  }
}

static cudaError_t failed(cudaError_t error) {
  last_error = error;
  return error;
}

/* ---- Memory: what lies where, and how much is taken */

enum kind { DEVICE = 1, PINNED, RESERVED };
struct range { char *at; size_t size; enum kind kind; struct range *next; };
static struct range *ranges;

static void keep(void *at, size_t size, enum kind kind) {
  struct range *made = malloc(sizeof *made);
  pthread_mutex_lock(&lock);
  *made = (struct range){at, size, kind, ranges};
  ranges = made;
  pthread_mutex_unlock(&lock);
}

static size_t forget(void *at, enum kind kind) {
  size_t size = 0;
  pthread_mutex_lock(&lock);
  for (struct range **r = &ranges; *r; r = &(*r)->next)
    if ((*r)->at == at && (*r)->kind == kind) {
      struct range *gone = *r;
      size = gone->size;
      *r = gone->next;
      free(gone);
      break;
    }
  pthread_mutex_unlock(&lock);
  return size;
}

static int kind_of(const void *at) {
  int kind = 0;
  pthread_mutex_lock(&lock);
  for (struct range *r = ranges; r && !kind; r = r->next)
    if ((const char *)at >= r->at && (const char *)at < r->at + r->size) kind = r->kind;
  pthread_mutex_unlock(&lock);
  return kind;
}

static struct held *mine(void) { /* this process's place; that of one that is gone is taken over */
  struct held *place = held;
  for (struct held *one = held; one < held + PROCESSES; one++) {
    if (one->pid == getpid()) return one;
    if (!one->pid && place->pid) place = one;
  }
  *place = (struct held){getpid(), 0};
  return place;
}

static size_t used(void) {
  size_t sum = 0;
  for (struct held *one = held; one < held + PROCESSES; one++) {
    if (one->pid && one->pid != getpid() && kill(one->pid, 0) && errno == ESRCH) *one = (struct held){0, 0};
    sum += one->bytes;
  }
  return sum;
}

static void begin_alone(void) {
  pthread_mutex_lock(&lock);
  if (shared_file >= 0) flock(shared_file, LOCK_EX);
}

static void end_alone(void) {
  if (shared_file >= 0) flock(shared_file, LOCK_UN);
  pthread_mutex_unlock(&lock);
}

static int take(size_t size) {
  begin_alone();
  int fits = used() + size <= capacity;
  if (fits) mine()->bytes += size;
  end_alone();
  return fits;
}

static void give_back(size_t size) {
  begin_alone();
  mine()->bytes -= size;
  end_alone();
}

static void *pages(size_t size, int protection) {
  void *at = mmap(0, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return at == MAP_FAILED ? 0 : at;
}

API cudaError_t cudaMalloc(void **out, size_t size) {
  size = (size + PAGE - 1) / PAGE * PAGE;
  *out = 0;
  if (!take(size)) return failed(cudaErrorMemoryAllocation);
  if (!(*out = pages(size, PROT_READ | PROT_WRITE))) {
    give_back(size);
    return failed(cudaErrorMemoryAllocation);
  }
  keep(*out, size, DEVICE);
  return cudaSuccess;
}

API cudaError_t cudaFree(void *at) {
  size_t size = at ? forget(at, DEVICE) : 0;
  if (size) {
    munmap(at, size);
    give_back(size);
  }
  return cudaSuccess;
}

API cudaError_t cudaMemGetInfo(size_t *free_now, size_t *total) {
  begin_alone();
  *total = capacity;
  *free_now = capacity - used();
  end_alone();
  return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) {
  (void)flags;
  size = size ? size : 1;
  if (!(*out = pages(size, PROT_READ | PROT_WRITE))) return failed(cudaErrorMemoryAllocation);
  keep(*out, size, PINNED);
  return cudaSuccess;
}

API cudaError_t cudaFreeHost(void *at) {
  size_t size = forget(at, PINNED);
  if (size) munmap(at, size);
  return cudaSuccess;
}

API cudaError_t cudaHostRegister(void *at, size_t size, unsigned flags) {
  (void)flags;
  keep(at, size, PINNED);
  return cudaSuccess;
}

API cudaError_t cudaHostUnregister(void *at) {
  forget(at, PINNED);
  return cudaSuccess;
}

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *at) {
  int kind = kind_of(at);
  memset(out, 0, sizeof *out);
  out->type = kind == PINNED ? cudaMemoryTypeHost : kind ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  out->devicePointer = (void *)at;
  if (kind == PINNED) out->hostPointer = (void *)at;
  return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t size) {
  int kind = size > COPIED ? kind_of(to) : PINNED;
  if (kind != DEVICE && kind != RESERVED) memcpy(to, from, size);
  return cudaSuccess;
}

API cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  (void)kind;
  return copy(to, from, size);
}

API cudaError_t cudaMemcpyAsync(
    void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)kind, (void)stream;
  return copy(to, from, size);
}

API cudaError_t cudaMemset(void *at, int value, size_t size) {
  if (size <= COPIED) memset(at, value, size);
  return cudaSuccess;
}

API cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream) {
  (void)stream;
  return cudaMemset(at, value, size);
}

API cudaError_t cudaMemcpyToSymbol(
    const void *symbol, const void *from, size_t size, size_t offset, enum cudaMemcpyKind kind) {
  (void)symbol, (void)from, (void)size, (void)offset, (void)kind;
  return cudaSuccess;
}

API cudaError_t cudaGetSymbolAddress(void **out, const void *symbol) {
  static char room[1 << 16];
  (void)symbol;
  *out = room;
  return cudaSuccess;
}

/* ---- The device */

static int shared_memory(void) { /* bytes a block may ask for: CUDA C++ Programming Guide, "Compute Capabilities" */
  if (major >= 9) return 227 * 1024;
  if (major == 8) return (minor ? 99 : 163) * 1024;
  return (minor == 5 ? 64 : 96) * 1024;
}

static int threads(void) { /* of a multiprocessor, from the same table */
  if (major == 7 && minor == 5) return 1024;
  return major == 8 && minor ? 1536 : 2048;
}

API cudaError_t cudaGetDeviceCount(int *count) {
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  *count = !visible || *visible == '0';
  return *count ? cudaSuccess : failed(cudaErrorNoDevice);
}

API cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

API cudaError_t cudaSetDevice(int device) { return device ? failed(cudaErrorInvalidDevice) : cudaSuccess; }

API cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }

API cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

API cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

API cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  (void)device, (void)peer;
  *can = 0;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetPCIBusId(char *out, int size, int device) {
  (void)device;
  snprintf(out, size, "0000:01:00.0");
  return cudaSuccess;
}

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int device) {
  (void)device;
  memset(out, 0, sizeof *out);
  snprintf(out->name, sizeof out->name, "%s", name);
  memset(&out->uuid, 7, sizeof out->uuid);
  out->totalGlobalMem = capacity;
  out->major = major;
  out->minor = minor;
  out->multiProcessorCount = multiprocessors;
  out->maxThreadsPerMultiProcessor = threads();
  out->sharedMemPerBlock = 48 * 1024;
  out->sharedMemPerBlockOptin = shared_memory();
  out->sharedMemPerMultiprocessor = shared_memory() + 1024;
  out->regsPerBlock = out->regsPerMultiprocessor = 65536;
  out->warpSize = 32;
  out->maxThreadsPerBlock = out->maxThreadsDim[0] = out->maxThreadsDim[1] = 1024;
  out->maxThreadsDim[2] = 64;
  out->maxGridSize[0] = 2147483647;
  out->maxGridSize[1] = out->maxGridSize[2] = 65535;
  out->maxBlocksPerMultiProcessor = 32;
  out->totalConstMem = 65536;
  out->textureAlignment = 512;
  out->l2CacheSize = 50 << 20;
  out->concurrentKernels = out->unifiedAddressing = out->canMapHostMemory = out->cooperativeLaunch = 1;
  out->pciBusID = 1;
  return cudaSuccess;
}

API cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr which, int device) {
  struct cudaDeviceProp card;
  cudaGetDeviceProperties(&card, device);
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY: *out = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *out = 64; break;
    case cudaDevAttrMaxGridDimX: *out = card.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *out = card.maxGridSize[1]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *out = (int)card.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = shared_memory(); break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = (int)card.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *out = card.regsPerBlock; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *out = card.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *out = card.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMultiProcessorCount: *out = multiprocessors; break;
    case cudaDevAttrWarpSize: *out = 32; break;
    case cudaDevAttrL2CacheSize: *out = card.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *out = major; break;
    case cudaDevAttrComputeCapabilityMinor: *out = minor; break;
    case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrUnifiedAddressing: *out = 1; break;
    default: *out = 0;
  }
  return cudaSuccess;
}

/* ---- Errors */

API cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

API cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* ---- Streams and events: everything is done as soon as it is asked for */

static void *fresh(void) {
  static char handles[1 << 16];
  static unsigned count;
  return &handles[64 * (__sync_add_and_fetch(&count, 1) % 1000)];
}

API cudaError_t cudaStreamCreate(cudaStream_t *out) {
  *out = fresh();
  return cudaSuccess;
}

API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  (void)flags;
  return cudaStreamCreate(out);
}

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority) {
  (void)flags, (void)priority;
  return cudaStreamCreate(out);
}

API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return (void)stream, cudaSuccess; }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return (void)stream, cudaSuccess; }
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return (void)stream, cudaSuccess; }

API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)stream, (void)event, (void)flags;
  return cudaSuccess;
}

API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out) {
  (void)stream;
  *out = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  (void)stream;
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (graph) *graph = 0;
  if (nodes) *nodes = 0;
  if (edges) *edges = 0;
  if (count) *count = 0;
  return cudaSuccess;
}

API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *out) {
  (void)stream;
  *out = 0;
  return cudaSuccess;
}

API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  return (void)mode, cudaSuccess;
}

API cudaError_t cudaStreamAddCallback(
    cudaStream_t stream, cudaStreamCallback_t call, void *data, unsigned flags) {
  (void)flags;
  call(stream, cudaSuccess, data);
  return cudaSuccess;
}

API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void *data) {
  (void)stream;
  call(data);
  return cudaSuccess;
}

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
  (void)flags;
  *out = calloc(1, sizeof(struct timespec));
  return cudaSuccess;
}

API cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }

API cudaError_t cudaEventDestroy(cudaEvent_t event) {
  free(event);
  return cudaSuccess;
}

API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  (void)stream;
  clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
  return cudaSuccess;
}

API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  (void)flags;
  return cudaEventRecord(event, stream);
}

API cudaError_t cudaEventQuery(cudaEvent_t event) { return (void)event, cudaSuccess; }
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return (void)event, cudaSuccess; }

API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t first, cudaEvent_t second) {
  const struct timespec *a = (void *)first, *b = (void *)second;
  *ms = 1e3f * (float)(b->tv_sec - a->tv_sec) + 1e-6f * (float)(b->tv_nsec - a->tv_nsec);
  return cudaSuccess;
}

/* ---- Kernels: launched, and nothing runs */

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *kernel) {
  (void)kernel;
  memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->numRegs = 32;
  out->binaryVersion = out->ptxVersion = 10 * major + minor;
  out->maxDynamicSharedSizeBytes = 48 * 1024;
  return cudaSuccess;
}

API cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute which, int value) {
  (void)kernel, (void)which, (void)value;
  return cudaSuccess;
}

API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *out, const void *kernel, int threads_of_block, size_t shared, unsigned flags) {
  (void)kernel, (void)threads_of_block, (void)shared, (void)flags;
  *out = 2;
  return cudaSuccess;
}

API cudaError_t cudaLaunchKernel(
    const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
  (void)kernel, (void)grid, (void)block, (void)arguments, (void)shared, (void)stream;
  return cudaSuccess;
}

API cudaError_t __cudaLaunchKernel(
    void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

API cudaError_t cudaLaunchCooperativeKernel(
    const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments) {
  (void)config, (void)kernel, (void)arguments;
  return cudaSuccess;
}

API cudaError_t __cudaGetKernel(void **out, const void *kernel) {
  *out = (void *)kernel;
  return cudaSuccess;
}

static _Thread_local struct { dim3 grid, block; size_t shared; void *stream; } pushed;

API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}

API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *(void **)stream = pushed.stream;
  return cudaSuccess;
}

API void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  (void)binary;
  return handle;
}

API void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
API void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
API void __cudaRegisterFunction(void) {}
API void __cudaRegisterVar(void) {}
API char __cudaInitModule(void **handle) { return (void)handle, 0; }

/* ---- The driver's virtual memory, of which PyTorch makes segments that grow */

API CUresult hollow_nothing(void) { return CUDA_SUCCESS; }

static CUresult error_string(CUresult error, const char **out) {
  *out = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : "an error of the hollow card";
  return CUDA_SUCCESS;
}

static CUresult device_get(CUdevice *out, int ordinal) {
  *out = ordinal;
  return CUDA_SUCCESS;
}

static CUresult device_attribute(int *out, CUdevice_attribute which, CUdevice device) {
  (void)device;
  *out = which == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
  return CUDA_SUCCESS;
}

static CUresult address_reserve(
    CUdeviceptr *out, size_t size, size_t alignment, CUdeviceptr wanted, unsigned long long flags) {
  (void)alignment, (void)wanted, (void)flags;
  void *at = pages(size, PROT_NONE);
  if (!at) return CUDA_ERROR_OUT_OF_MEMORY;
  keep(at, size, RESERVED);
  *out = (CUdeviceptr)at;
  return CUDA_SUCCESS;
}

static CUresult address_free(CUdeviceptr at, size_t size) {
  forget((void *)at, RESERVED);
  munmap((void *)at, size);
  return CUDA_SUCCESS;
}

static CUresult memory_create(CUmemGenericAllocationHandle *out, size_t size,
                              const CUmemAllocationProp *properties, unsigned long long flags) {
  (void)properties, (void)flags;
  if (!take(size)) return CUDA_ERROR_OUT_OF_MEMORY;
  size_t *handle = malloc(sizeof *handle);
  *handle = size;
  *out = (CUmemGenericAllocationHandle)handle;
  return CUDA_SUCCESS;
}

static CUresult memory_release(CUmemGenericAllocationHandle handle) {
  give_back(*(size_t *)handle);
  free((void *)handle);
  return CUDA_SUCCESS;
}

static CUresult memory_map(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                           unsigned long long flags) {
  (void)offset, (void)handle, (void)flags;
  return mprotect((void *)at, size, PROT_READ | PROT_WRITE) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static CUresult memory_unmap(CUdeviceptr at, size_t size) {
  madvise((void *)at, size, MADV_DONTNEED);
  mprotect((void *)at, size, PROT_NONE);
  return CUDA_SUCCESS;
}

static CUresult granularity(
    size_t *out, const CUmemAllocationProp *properties, CUmemAllocationGranularity_flags flags) {
  (void)properties, (void)flags;
  *out = PAGE;
  return CUDA_SUCCESS;
}

API cudaError_t cudaGetDriverEntryPointByVersion(
    const char *symbol, void **out, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *result) {
  static const struct { const char *symbol; void *function; } known[] = {
      {"cuGetErrorString", error_string},
      {"cuDeviceGet", device_get},
      {"cuDeviceGetAttribute", device_attribute},
      {"cuMemAddressReserve", address_reserve},
      {"cuMemAddressFree", address_free},
      {"cuMemCreate", memory_create},
      {"cuMemRelease", memory_release},
      {"cuMemMap", memory_map},
      {"cuMemUnmap", memory_unmap},
      {"cuMemGetAllocationGranularity", granularity},
  };
  (void)version, (void)flags;
  *out = hollow_nothing;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(known[i].symbol, symbol)) *out = known[i].function;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

/* ---- cuBLAS. What a function is given and does not use need not be declared: callers clean up in C */

static int make_handle(void **out) {
  *out = calloc(1, 512);
  return 0;
}

static int drop_handle(void *handle) {
  free(handle);
  return 0;
}

API int cublasCreate_v2(void **out) { return make_handle(out); }
API int cublasLtCreate(void **out) { return make_handle(out); }
API int cublasLtMatmulDescCreate(void **out) { return make_handle(out); }
API int cublasLtMatmulPreferenceCreate(void **out) { return make_handle(out); }
API int cublasLtMatrixLayoutCreate(void **out) { return make_handle(out); }
API int cublasDestroy_v2(void *handle) { return drop_handle(handle); }
API int cublasLtMatmulDescDestroy(void *handle) { return drop_handle(handle); }
API int cublasLtMatmulPreferenceDestroy(void *handle) { return drop_handle(handle); }
API int cublasLtMatrixLayoutDestroy(void *handle) { return drop_handle(handle); }

API int cublasGetMathMode(void *handle, int *out) {
  (void)handle;
  return *out = 0;
}

API int cublasGetPointerMode_v2(void *handle, int *out) {
  (void)handle;
  return *out = 0;
}

API size_t cublasLtGetVersion(void) { return 130000; }

#define HEURISTIC_BYTES 96 /* sizeof(cublasLtMatmulHeuristicResult_t), cublasLt.h of CUDA 12 and 13 */

API int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted, void *found,
    int *count) {
  (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted;
  memset(found, 0, HEURISTIC_BYTES);
  *count = 1;
  return 0;
}

#define NOTHING(function) \
  API int function(void) { return 0; }
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatmul)
NOTHING(cublasSgemm_v2)
NOTHING(cublasDgemm_v2)
NOTHING(cublasGemmEx)
NOTHING(cublasSgemmEx)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasGemmBatchedEx)
NOTHING(cublasSgemv_v2)
NOTHING(cublasDgemv_v2)
NOTHING(cublasDotEx)
NOTHING(cublasSdot_v2)
NOTHING(cublasDdot_v2)
