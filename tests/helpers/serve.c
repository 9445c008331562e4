/* Loads an exported model as TensorFlow Serving does, and calls it.
 *
 *   serve FOLDER OUTPUT serving_default SIZE PIXELS   uint8 images, one after
 *                                                     another
 *   serve FOLDER OUTPUT serve_encoded FILE...         image files
 *
 * Prints the output, float32 (N, D), with a line for each image. On an error, it
 * prints TensorFlow's message and exits with TensorFlow's code.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static TF_Status *status;

static void check(void) {
  if (TF_GetCode(status) != TF_OK) {
    fprintf(stderr, "%s\n", TF_Message(status));
    exit(TF_GetCode(status));
  }
}

static void require(int holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "%s\n", what);
    exit(100);
  }
}

/* As much of protocol buffers as a signature needs. */

typedef struct {
  const uint8_t *at, *end;
} Span;

static uint64_t varint(Span *in) {
  uint64_t value = 0;
  for (int shift = 0; in->at < in->end; shift += 7) {
    uint8_t byte = *in->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  require(0, "The graph's description is cut off");
  return 0;
}

/* The next field's number; *inside is its content if it holds bytes. */
static int next(Span *in, Span *inside) {
  uint64_t tag = varint(in), length = 0;
  *inside = (Span){in->at, in->at};
  switch (tag & 7) {
    case 0: varint(in); break;
    case 1: length = 8; break;
    case 2:
      length = varint(in);
      *inside = (Span){in->at, in->at + length};
      break;
    case 5: length = 4; break;
    default: require(0, "The graph's description is of another kind");
  }
  require(length <= (uint64_t)(in->end - in->at), "A field is cut off");
  in->at += length;
  return tag >> 3;
}

static Span field(Span message, int number) {
  Span inside;
  while (message.at < message.end)
    if (next(&message, &inside) == number) return inside;
  require(0, "A field is missing");
  return inside;
}

/* The value of a key in a map. */
static Span look_up(Span message, int map, const char *key) {
  Span entry;
  while (message.at < message.end) {
    if (next(&message, &entry) != map) continue;
    Span found = field(entry, 1);
    size_t length = found.end - found.at;
    if (length == strlen(key) && !memcmp(found.at, key, length))
      return field(entry, 2);
  }
  require(0, key);
  return entry;
}

enum { SIGNATURES = 5, INPUTS = 1, OUTPUTS = 2 };

static TF_Output tensor(TF_Graph *graph, TF_Buffer *description,
                        const char *signature, int which, const char *key) {
  Span meta = {description->data,
               (const uint8_t *)description->data + description->length};
  Span name =
      field(look_up(look_up(meta, SIGNATURES, signature), which, key), 1);
  char text[256] = {0};
  require(name.end - name.at < (long)sizeof text, "A name is too long");
  memcpy(text, name.at, name.end - name.at);
  char *colon = strchr(text, ':');
  require(colon != NULL, "A name has no number");
  *colon = 0;
  TF_Output output = {TF_GraphOperationByName(graph, text), atoi(colon + 1)};
  require(output.oper != NULL, text);
  return output;
}

static uint8_t *read_file(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  require(file != NULL, path);
  fseek(file, 0, SEEK_END);
  *length = ftell(file);
  rewind(file);
  uint8_t *bytes = malloc(*length + 1);
  require(fread(bytes, 1, *length, file) == *length, path);
  fclose(file);
  return bytes;
}

static TF_Tensor *pixels(int64_t size, const char *path) {
  size_t length;
  uint8_t *bytes = read_file(path, &length);
  int64_t shape[] = {length / (size * size * 3), size, size, 3};
  TF_Tensor *images = TF_AllocateTensor(TF_UINT8, shape, 4, length);
  memcpy(TF_TensorData(images), bytes, length);
  free(bytes);
  return images;
}

static TF_Tensor *files(int64_t count, char **paths) {
  TF_Tensor *images =
      TF_AllocateTensor(TF_STRING, &count, 1, count * sizeof(TF_TString));
  TF_TString *strings = TF_TensorData(images);
  for (int i = 0; i < count; i++) {
    size_t length;
    uint8_t *bytes = read_file(paths[i], &length);
    TF_TString_Init(&strings[i]);
    TF_TString_Copy(&strings[i], (const char *)bytes, length);
    free(bytes);
  }
  return images;
}

int main(int argc, char **argv) {
  require(argc > 4, "usage: serve FOLDER OUTPUT SIGNATURE ...");
  const char *folder = argv[1], *signature = argv[3];
  int encoded = !strcmp(signature, "serve_encoded");
  status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_Buffer *description = TF_NewBuffer();
  const char *tags[] = {"serve"};
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session = TF_LoadSessionFromSavedModel(
      options, NULL, folder, tags, 1, graph, description, status);
  check();

  TF_Output input = tensor(graph, description, signature, INPUTS,
                           encoded ? "image_bytes" : "images");
  TF_Output output = tensor(graph, description, signature, OUTPUTS, argv[2]);
  TF_Tensor *images =
      encoded ? files(argc - 4, argv + 4) : pixels(atoi(argv[4]), argv[5]);
  TF_Tensor *result = NULL;
  TF_SessionRun(session, NULL, &input, &images, 1, &output, &result, 1, NULL,
                0, NULL, status);
  check();

  require(TF_TensorType(result) == TF_FLOAT, "The output is no float32");
  require(TF_NumDims(result) == 2, "The output is no matrix");
  const float *value = TF_TensorData(result);
  for (int64_t i = 0; i < TF_Dim(result, 0); i++) {
    for (int64_t j = 0; j < TF_Dim(result, 1); j++)
      printf(j ? " %.9g" : "%.9g", *value++);
    printf("\n");
  }
  TF_DeleteTensor(images);
  TF_DeleteTensor(result);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteBuffer(description);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
