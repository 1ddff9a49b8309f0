// Every kernel: what each pointer is, its shape, its role, what it may alias, and how long it must live.
//
// Common to all
//   T          float or double; all arrays of one call have the same.
//   Sizes      N batch, T time steps, D inputs, H hidden units, V vocabulary, C channels, P positions. Any may be 0.
//   Vec, Matrix, Cube   read-only inputs with any strides, counted in elements and possibly 0 or negative.
//   T*         outputs: C-contiguous, owned and allocated by the caller, uninitialised before the call, wholly written
//              by it. No output may overlap an input or another output.
//   reserve    kept by the caller from a forward call to its backward calls; never written by backward, so that one
//              forward can be followed by any number of backwards. Its layout is the kernel's own and depends on the
//              instruction set, which is fixed for the life of the process.
//   workspace  scratch: no meaning before or after the call.
//   Both are sized by the *_buffers function of the row, in elements of T.
//   Lifetime   no pointer is kept after return, except that reserve and the inputs named by a backward function must
//              still hold what forward saw.
// Kernels check nothing, raise nothing and know nothing of Python. They may be called from several threads at once.
// Results do not depend on the number of threads, bit for bit.
#pragma once

#include <cstdint>

#include "gates.h"

namespace fastrnn {

using Index = std::int64_t;

template <class T>
struct Vec {
    const T* data;
    Index stride;
    FASTRNN_INLINE const T& operator()(Index i) const { return data[i * stride]; }
};

template <class T>
struct Matrix {
    const T* data;
    Index row, col;
    FASTRNN_INLINE const T& operator()(Index i, Index j) const { return data[i * row + j * col]; }
};

// A matrix that a kernel writes; one of its strides is 1.
template <class T>
struct Result {
    T* data;
    Index row, col;
};

template <class T>
struct Cube {
    const T* data;
    Index s0, s1, s2;
    FASTRNN_INLINE const T* at(Index i, Index j) const { return data + i * s0 + j * s1; }
};

// Sizes of a recurrent layer, and which steps of it are run.
struct Sequence {
    Index N, T, D, H;
    const Index* lengths;  // (N) steps of each sequence, 0..T; null: all have T
    bool reverse;          // run each from its last step to its first
    // lstm: the gates of weights, biases and their gradients are i, f, g, o, as PyTorch has them. The weights'
    // gradients then have a row stride of 1.
    bool swapped = false;
};

struct BufferSizes {
    Index reserve, forward, backward;
};

// Sums over arrays are taken in chunks of this many elements (fastrnn/ops/image_losses.py knows it as _CHUNK).
constexpr Index sum_chunk = 4096;

namespace cpu {

// ---- rnn: h' = tanh(x Wx + h Wh + b) --------------------------------------------------------------------------------
// x (N,T,D)  h0 (N,H)  Wx (D,H)  Wh (H,H)  b (H)  ->  h (N,T,H), h_n (N,H)
// dh (N,T,H), dh_n (N,H) or null data  ->  dx (N,T,D), dh0 (N,H), dWx (D,H), dWh (H,H), db (H)
// Steps beyond a sequence's length give h = 0 and dx = 0, and dh there is not read.
template <class T>
BufferSizes rnn_buffers(Index N, Index steps, Index D, Index H);
template <class T>
void rnn_forward(Sequence s, Cube<T> x, Matrix<T> h0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, T* h, T* h_n, T* reserve,
                 T* workspace);
template <class T>
void rnn_backward(Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve, T* workspace,
                  T* dx, T* dh0, Result<T> dWx, Result<T> dWh, T* db);

// ---- lstm: gate order i, f, o, g in every axis of 4H, unless the sequence says otherwise
// ---------------------------------------------------------------- As rnn with Wx (D,4H), Wh (H,4H), b (4H); c0 (N,H),
// null data for zeros  ->  also c_n (N,H) dc_n (N,H) or null data  ->  also dc0 (N,H)
template <class T>
BufferSizes lstm_buffers(Index N, Index steps, Index D, Index H);
template <class T>
void lstm_forward(Sequence s, Cube<T> x, Matrix<T> h0, Matrix<T> c0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, T* h, T* h_n,
                  T* c_n, T* reserve, T* workspace);
template <class T>
void lstm_backward(Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> dc_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve,
                   T* workspace, T* dx, T* dh0, T* dc0, Result<T> dWx, Result<T> dWh, T* db);

// ---- gru: gate order r, z, n in every axis of 3H --------------------------------------------------------------------
// As rnn with Wx (D,3H), Wh (H,3H), b (3H); bh (3H), null data for zeros  ->  also dbh (3H)
template <class T>
BufferSizes gru_buffers(Index N, Index steps, Index D, Index H);
template <class T>
void gru_forward(Sequence s, Cube<T> x, Matrix<T> h0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, Vec<T> bh, T* h, T* h_n,
                 T* reserve, T* workspace);
template <class T>
void gru_backward(Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve, T* workspace,
                  T* dx, T* dh0, Result<T> dWx, Result<T> dWh, T* db, T* dbh);

// ---- embedding ------------------------------------------------------------------------------------------------------
// ids (n) in [0, V), checked by the caller; n - 1 and V - 1 have at most 64 bits together.
// W (V,D)  ->  out (n,D)
// dout (n,D)  ->  each row of the gradient is the sum of its word's rows of dout, in ascending order of position (in
//                 parts, where they are many):
//   backward   dW (V,D), C-contiguous: 0 where a word is unused. With `add` it may have any strides, no two elements in
//              one place; the sums begin at what it holds, and unused rows are not touched.
//   sort       returns how many different words there are, k. Leaves the ids sorted in the workspace, for
//   sparse     rows (k), ascending, and values (k,D).
// workspace: word_embedding_buffers elements of Index.
Index word_embedding_buffers(Index n, Index V, Index D, Index itemsize);
template <class T>
void word_embedding_forward(Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out);
template <class T>
void word_embedding_backward(Index n, Index V, Index D, Vec<Index> ids, Matrix<T> dout, Index* workspace, T* dW,
                             Index dW_row, Index dW_col, bool add);
Index word_embedding_sort(Index n, Index V, Index D, Index itemsize, Vec<Index> ids, Index* workspace);
template <class T>
void word_embedding_sparse(Index n, Index V, Index D, Matrix<T> dout, Index* workspace, Index k, Index* rows,
                           T* values);

// ---- affine ---------------------------------------------------------------------------------------------------------
// x (N,D)  w (D,M)  b (M)  ->  out (N,M) = x w + b
// dout (N,M)  ->  dx (N,D), dw (D,M), db (M)
template <class T>
BufferSizes affine_buffers(Index N, Index D, Index M);
template <class T>
void affine_forward(Index N, Index D, Index M, Matrix<T> x, Matrix<T> w, Vec<T> b, T* workspace, T* out);
template <class T>
void affine_backward(Index N, Index D, Index M, Matrix<T> dout, Matrix<T> x, Matrix<T> w, T* workspace, T* dx, T* dw,
                     T* db);

// ---- softmax_loss ---------------------------------------------------------------------------------------------------
// x (R,V), y (R), mask (R)  ->  row_loss (R): -log softmax(x)[y]; dx (R,V): (softmax(x) - onehot(y)) / count
// Where mask is 0, y is not read, and row_loss and dx are 0.
template <class T>
void temporal_softmax_loss(Index R, Index V, Matrix<T> x, Vec<Index> y, Vec<unsigned char> mask, Index count,
                           double* row_loss, T* dx);
// The same of the scores x = h W + b, which are never held all at once: with what two threads have on their stacks, the
// workspace (.backward) is within a tenth of them, where N T and V are some hundreds at least.
// h (N,T,H)  W (H,V)  b (V)  y, mask (N T)  ->  loss (1): the sum of row_loss; dh (N,T,H), dW (H,V), db (V) with count
// = N
template <class T>
BufferSizes vocab_softmax_loss_buffers(Index R, Index H, Index V);
template <class T>
void vocab_softmax_loss(Index N, Index steps, Index H, Index V, Cube<T> h, Matrix<T> W, Vec<T> b, Vec<Index> y,
                        Vec<unsigned char> mask, T* workspace, double* loss, T* dh, Result<T> dW, T* db);

// ---- gram -----------------------------------------------------------------------------------------------------------
// f (N,C,P)  ->  g (N,C,C) = scale f f^T, exactly symmetric
// dg (N,C,C), f (N,C,P)  ->  df (N,C,P) = scale (dg + dg^T) f; df is written with the strides given
template <class T>
BufferSizes gram_buffers(Index N, Index C, Index P);
template <class T>
void gram_matrix(Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g);
template <class T>
void gram_backward(Index N, Index C, Index P, Cube<T> dg, Cube<T> f, double scale, T* workspace, T* df, Index df_s0,
                   Index df_s1, Index df_s2);

// ---- image_losses ---------------------------------------------------------------------------------------------------
// a, b (n)  ->  partial (ceil(n / sum_chunk)): sums of (a - b)^2;   out (n) = scale (a - b)
// img (P,H,W)  ->  partial (P): sums of squared differences of neighbours;   dimg (P,H,W): scale times their gradient
template <class T>
void squared_distance(Index n, Vec<T> a, Vec<T> b, double* partial);
template <class T>
void scaled_difference(Index n, Vec<T> a, Vec<T> b, double scale, T* out);
template <class T>
void tv_loss(Index P, Index H, Index W, Cube<T> img, double* partial);
template <class T>
void tv_loss_backward(Index P, Index H, Index W, Cube<T> img, double scale, T* dimg);

// ---- optim: all arrays (n) and contiguous ---------------------------------------------------------------------------
template <class T>
void sgd(Index n, const T* w, const T* dw, double lr, T* out);
template <class T>
void sgd_momentum(Index n, const T* w, const T* dw, const T* v, double lr, double momentum, T* out, T* v_out);
template <class T>
void rmsprop(Index n, const T* w, const T* dw, const T* cache, double lr, double decay, double epsilon, T* out,
             T* cache_out);
template <class T>
void adam(Index n, const T* w, const T* dw, const T* m, const T* v, double lr, double beta1, double beta2,
          double epsilon, double t, T* out, T* m_out, T* v_out);

}  // namespace cpu

// ---- CUDA
// ------------------------------------------------------------------------------------------------------------ The same
// operations on device pointers, queued on a stream; nothing is waited for. Large products are the caller's
// (fastrnn/cuda). Each returns a cudaError_t: that of the launch, not of what a kernel may still run into.
namespace cuda {

using Stream = void*;  // cudaStream_t
using Error = int;     // cudaError_t

// Of the products of float32 recurrent layers: set_float32_matmul_precision's words.
enum class Precision { highest, high, medium };

// ---- rnn, lstm, gru: the time loops ----
// With G gates a unit (1, 4, 3) and R = N T rows, row n T + t. Arrays as above, lengths contiguous.
//   forward   reserve begins with pre (R,GH) = x Wx, written by the caller, and then has what backward needs; after it
//             come h_prev (R,H), the state before each row's step, 0 where the step is not run, and (R,H) of the
//             cell's. x Wx of steps that are not run is not looked at.
//   backward  workspace begins with da (R,GH), gradients by the pre-activations, 0 where a step is not run (of the gru
//             two: first by the input parts, then by the recurrent parts); dx, dWx, dWh are the caller's products of
//             it.
// The buffers depend on the device that is current; forward and backward may run in different precisions.
// T is float, double or Half (cuda/half.h). Of halves the pre-activations, da and all that is kept are float in the
// same buffers, whose sizes are told in halves; the precision is not looked at.
template <class T>
Error rnn_buffers(Index N, Index steps, Index H, BufferSizes& sizes);
template <class T>
Error rnn_forward(Stream stream, Precision precision, Sequence s, Matrix<T> h0, Matrix<T> Wh, Vec<T> b, T* h, T* h_n,
                  T* reserve, T* workspace);
template <class T>
Error rnn_backward(Stream stream, Precision precision, Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wh,
                   const T* reserve, T* workspace, T* dh0, T* db);

template <class T>
Error lstm_buffers(Index N, Index steps, Index H, BufferSizes& sizes);
template <class T>
Error lstm_forward(Stream stream, Precision precision, Sequence s, Matrix<T> h0, Matrix<T> c0, Matrix<T> Wh, Vec<T> b,
                   T* h, T* h_n, T* c_n, T* reserve, T* workspace);
template <class T>
Error lstm_backward(Stream stream, Precision precision, Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> dc_n,
                    Matrix<T> Wh, const T* reserve, T* workspace, T* dh0, T* dc0, T* db);

template <class T>
Error gru_buffers(Index N, Index steps, Index H, BufferSizes& sizes);
template <class T>
Error gru_forward(Stream stream, Precision precision, Sequence s, Matrix<T> h0, Matrix<T> Wh, Vec<T> b, Vec<T> bh, T* h,
                  T* h_n, T* reserve, T* workspace);
template <class T>
Error gru_backward(Stream stream, Precision precision, Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wh,
                   const T* reserve, T* workspace, T* dh0, T* db, T* dbh);

// ---- embedding: as above, and ----
// first_bad_id   the least position of an id outside of [0, V), or -1: into position (1), on the device.
// buffers        the size goes to *size, on the host; asks the device's properties, and waits for nothing.
// sort           leaves the number of different words in workspace[0], for the caller to read.
Error first_bad_id(Stream stream, Index n, Vec<Index> ids, Index V, Index* position);
Error word_embedding_buffers(Index n, Index V, Index D, Index itemsize, Index* size);
template <class T>
Error word_embedding_forward(Stream stream, Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out);
template <class T>
Error word_embedding_backward(Stream stream, Index n, Index V, Index D, Vec<Index> ids, Matrix<T> dout,
                              Index* workspace, T* dW, Index dW_row, Index dW_col, bool add);
Error word_embedding_sort(Stream stream, Index n, Index V, Index D, Index itemsize, Vec<Index> ids, Index* workspace);
template <class T>
Error word_embedding_sparse(Stream stream, Index n, Index V, Index D, Matrix<T> dout, Index* workspace, Index k,
                            Index* rows, T* values);

// ---- softmax_loss: the first as above; the others are the parts of vocab_softmax_loss between its products ----
template <class T>
Error temporal_softmax_loss(Stream stream, Index R, Index V, Matrix<T> x, Vec<Index> y, Vec<unsigned char> mask,
                            Index count, double* row_loss, T* dx);
// losses (n)  ->  total (1): their sum / divisor
template <class T>
Error total_loss(Stream stream, Index n, const double* losses, double divisor, T* total);
// R of the rows of a batch: those numbered rows[first], rows[first + 1], ..., all of which count; or where rows is null
// those numbered first, first + 1, ..., some of which mask rules out.
// h (N,steps,H)  ->  out (R,H): the rows, 0 where ruled out
template <class T>
Error take_rows(Stream stream, Index R, Index H, Index steps, Cube<T> h, Vec<unsigned char> mask, const Index* rows,
                Index first, T* out);
// from (R,H)  ->  their rows in dh
template <class T>
Error put_rows(Stream stream, Index R, Index H, const T* from, const Index* rows, Index first, T* dh);
// dh (R,H) = 0 where mask is 0; nothing else is written
template <class T>
Error clear_masked(Stream stream, Index R, Index H, Vec<unsigned char> mask, T* dh);
// scores (R,V) without their bias b (V); y and mask of the whole batch  ->  scores: the gradient of the loss by the
// scores, over count; row_loss (R). Both 0 for rows ruled out.
template <class T>
Error softmax_chunk(Stream stream, Index R, Index V, T* scores, Vec<T> b, Vec<Index> y, Vec<unsigned char> mask,
                    const Index* rows, Index first, Index count, double* row_loss);
// a (R,V)  ->  sums (V) of its columns, or with `add` those added to what is there
template <class T>
Error column_sums(Stream stream, Index R, Index V, const T* a, bool add, T* sums);

// ---- gram: as above; sizes depend on the device ----
// cut: the tiles of an image, the parts that the sum over positions is cut into, and how long they are; for tests.
template <class T>
Error gram_cut(Index N, Index C, Index P, Index* tiles, Index* parts, Index* part_k);
template <class T>
Error gram_buffers(Index N, Index C, Index P, BufferSizes* sizes);
template <class T>
Error gram_matrix(Stream stream, Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g);
template <class T>
Error gram_backward(Stream stream, Index N, Index C, Index P, Cube<T> dg, Cube<T> f, double scale, T* workspace, T* df,
                    Index df_s0, Index df_s1, Index df_s2);

// ---- image_losses: as above ----
template <class T>
Error squared_distance(Stream stream, Index n, Vec<T> a, Vec<T> b, double* partial);
template <class T>
Error scaled_difference(Stream stream, Index n, Vec<T> a, Vec<T> b, double scale, T* out);
template <class T>
Error tv_loss(Stream stream, Index P, Index H, Index W, Cube<T> img, double* partial);
template <class T>
Error tv_loss_backward(Stream stream, Index P, Index H, Index W, Cube<T> img, double scale, T* dimg);

// ---- optim: `count` arrays at once, contiguous ones, of sizes[i] elements ----
// arrays, by rows of `count` pointers: w, dw, the rule's state; the new w, the new state. An output may be the very
// array of an input. Both tables are on the host, and read before return.
template <class T>
Error sgd(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr);
template <class T>
Error sgd_momentum(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double momentum);
template <class T>
Error rmsprop(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double decay,
              double epsilon);
template <class T>
Error adam(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double beta1, double beta2,
           double epsilon, double t);

}  // namespace cuda
}  // namespace fastrnn
