/* Stream capture and CUDA graphs over the libraries that count, which know neither; loaded before them (LD_PRELOAD).
 *
 * Between cudaStreamBeginCapture and cudaStreamEndCapture the host's requests go into a graph: they are taken out of
 * what the host asked the GPU for at once, and become the graph's nodes. What CUDA refuses while a stream is capturing
 * is refused here too, with the same error: waits of the host, and copies from or to pageable memory.
 * A single number that the host reads from the GPU is zero, not what happens to lie there: no kernel has written it.
 * Products in float32 and float64, which the libraries count among other calls, are counted as products.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { LAUNCHES, TRITON, PRODUCTS, TO_DEVICE, TO_HOST, ON_DEVICE, MEMSETS, STREAM_SYNCS, DEVICE_SYNCS, EVENT_SYNCS = 10 };
enum { OTHERS = 13, BYTES_TO_DEVICE, BYTES_TO_HOST, FIELDS };
enum { REFUSED = 900, INVALIDATED = 901 };
enum { NONE, ACTIVE, INVALID };

typedef void *Stream;
typedef struct { long nodes; } Graph;

static int status = NONE;
static Stream capturing;
static unsigned long long capture_id;
static long products, graph_launches, replayed, refused;
static long before[FIELDS], before_products, captured[FIELDS], captured_products;

static void *original(const char *name) {
  static void *library;
  if (!library) library = dlopen("libcudart.so.13", RTLD_NOW | RTLD_GLOBAL);
  return dlsym(library, name);
}
#define ORIGINAL(type, name, ...) \
  static type (*call)(__VA_ARGS__); \
  if (!call) call = (type (*)(__VA_ARGS__))original(name)

static void get(long *out) {
  ORIGINAL(void, "fc_get", long *);
  call(out);
}

static long nodes_of(const long *now, const long *then) {
  long nodes = 0;
  for (int i = LAUNCHES; i <= MEMSETS; i++) nodes += now[i] - then[i];
  return nodes;
}

static long nodes_so_far(void) {
  long now[FIELDS];
  get(now);
  return nodes_of(now, before) + products - before_products;
}

/* graph launches, nodes that they ran, refused calls, float32 products outside of graphs; then what graphs hold of each
 * of the libraries' fields, to be taken out of them */
void capture_get(long *out) {
  out[0] = graph_launches;
  out[1] = replayed;
  out[2] = refused;
  out[3] = products - captured_products;
  memcpy(out + 4, captured, sizeof captured);
  out[4 + OTHERS] += products; /* counted among the other calls */
}

void capture_reset(void) {
  products = graph_launches = replayed = refused = captured_products = 0;
  memset(captured, 0, sizeof captured);
}

/* The fields of archbench.regression.gpu_requests.Requests, in their order: what `archbench regress` gates. */
void archbench_gpu_requests(long *out) {
  long asked[FIELDS];
  get(asked);
  for (int i = 0; i < FIELDS; i++) asked[i] -= captured[i];
  out[0] = asked[LAUNCHES] + asked[TRITON] + asked[PRODUCTS] + asked[ON_DEVICE] + asked[MEMSETS];
  out[0] += products - captured_products + graph_launches;
  out[1] = replayed;
  out[2] = asked[TO_DEVICE];
  out[3] = asked[BYTES_TO_DEVICE];
  out[4] = asked[TO_HOST];
  out[5] = asked[BYTES_TO_HOST];
  out[6] = asked[STREAM_SYNCS] + asked[DEVICE_SYNCS] + asked[EVENT_SYNCS];
}

static int refuse(void) {
  status = INVALID;
  refused++;
  return REFUSED;
}

int cudaStreamBeginCapture(Stream stream, int mode) {
  if (status != NONE) return REFUSED;
  status = ACTIVE;
  capturing = stream;
  capture_id++;
  get(before);
  before_products = products;
  return 0;
}

int cudaStreamEndCapture(Stream stream, void **graph) {
  long now[FIELDS];
  int valid = status == ACTIVE;
  if (status == NONE || stream != capturing) return REFUSED;
  get(now);
  for (int i = LAUNCHES; i <= MEMSETS; i++) captured[i] += now[i] - before[i];
  captured_products += products - before_products;
  *graph = NULL;
  if (valid) {
    Graph *made = malloc(sizeof *made);
    made->nodes = nodes_so_far();
    *graph = made;
  }
  status = NONE;
  capturing = NULL;
  return valid ? 0 : INVALIDATED;
}

static int status_of(Stream stream) { return status != NONE && stream == capturing ? status : NONE; }

int cudaStreamIsCapturing(Stream stream, int *out) {
  *out = status_of(stream);
  return 0;
}

int cudaStreamGetCaptureInfo(Stream stream, int *out, unsigned long long *id, void **graph, void *dependencies,
                             void *edges, size_t *count) {
  *out = status_of(stream);
  if (id) *id = *out ? capture_id : 0;
  if (graph) *graph = NULL;
  if (count) *count = 0;
  return 0;
}

int cudaStreamGetCaptureInfo_v3(Stream stream, int *out, unsigned long long *id, void **graph, void *dependencies,
                                void *edges, size_t *count) {
  return cudaStreamGetCaptureInfo(stream, out, id, graph, dependencies, edges, count);
}

int cudaStreamGetCaptureInfo_v2(Stream stream, int *out, unsigned long long *id, void **graph, void *dependencies,
                                size_t *count) {
  return cudaStreamGetCaptureInfo(stream, out, id, graph, dependencies, NULL, count);
}

int cudaGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
  *count = (size_t)graph->nodes;
  return 0;
}

int cudaGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long flags) {
  *executable = malloc(sizeof **executable);
  **executable = *graph;
  return 0;
}

int cudaGraphInstantiate(Graph **executable, Graph *graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(executable, graph, flags);
}

int cudaGraphLaunch(Graph *executable, Stream stream) {
  if (status != NONE) return refuse();
  graph_launches++;
  replayed += executable->nodes;
  return 0;
}

int cudaGraphDestroy(Graph *graph) {
  free(graph);
  return 0;
}

int cudaGraphExecDestroy(Graph *executable) {
  free(executable);
  return 0;
}

/* What a capturing stream refuses. */
int cudaStreamSynchronize(Stream stream) {
  ORIGINAL(int, "cudaStreamSynchronize", Stream);
  return status != NONE ? refuse() : call(stream);
}

int cudaDeviceSynchronize(void) {
  ORIGINAL(int, "cudaDeviceSynchronize", void);
  return status != NONE ? refuse() : call();
}

int cudaEventSynchronize(void *event) {
  ORIGINAL(int, "cudaEventSynchronize", void *);
  return status != NONE ? refuse() : call(event);
}

int cudaEventQuery(void *event) {
  ORIGINAL(int, "cudaEventQuery", void *);
  return status != NONE ? refuse() : call(event);
}

enum { PAGEABLE, DEVICE = 2 };

static int kind_of(const void *pointer) {
  char attributes[256]; /* cudaPointerAttributes begins with the kind */
  ORIGINAL(int, "cudaPointerGetAttributes", void *, const void *);
  call(attributes, pointer);
  return *(int *)attributes;
}

static int copied(int error, void *to, const void *from, size_t bytes) {
  if (bytes <= 8 && kind_of(from) == DEVICE && kind_of(to) != DEVICE) memset(to, 0, bytes);
  return error;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, Stream stream) {
  ORIGINAL(int, "cudaMemcpyAsync", void *, const void *, size_t, int, Stream);
  if (status_of(stream) != NONE && (kind_of(to) == PAGEABLE || kind_of(from) == PAGEABLE)) return refuse();
  return copied(call(to, from, bytes, kind, stream), to, from, bytes);
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  ORIGINAL(int, "cudaMemcpy", void *, const void *, size_t, int);
  return status != NONE ? refuse() : copied(call(to, from, bytes, kind), to, from, bytes);
}

int cudaMemset(void *to, int value, size_t bytes) {
  ORIGINAL(int, "cudaMemset", void *, int, size_t);
  return status != NONE ? refuse() : call(to, value, bytes);
}

const char *cudaGetErrorString(int error) {
  ORIGINAL(const char *, "cudaGetErrorString", int);
  if (error == REFUSED) return "operation not permitted when stream is capturing";
  if (error == INVALIDATED) return "operation failed due to a previous error during capture";
  return call(error);
}

/* cuBLAS in float32 and float64. */
#define PRODUCT(name) \
  long name(void) { \
    ORIGINAL(long, #name, void); \
    products++; \
    return call(); \
  }
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemv_v2)
