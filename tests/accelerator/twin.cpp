// The device "twin" for tests: tensors in CPU memory that PyTorch treats as those of an accelerator (PrivateUse1).
//
// Each storage of the device refers to a CPU storage, its twin, which owns the memory. The boxed fallback calls the CPU
// kernel on CPU tensors over the twins and hands its results back as tensors of the device. Numbers therefore equal
// those of the CPU bit for bit. An operation that mixes devices is an error, as on CUDA.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <unordered_map>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;
using c10::Storage;
using c10::StorageImpl;
using c10::TensorImpl;

const c10::Device DEVICE(c10::kPrivateUse1, 0);

// ---------------------------------------------------------------- memory

void drop(void* twin) {
  c10::raw::intrusive_ptr::decref(static_cast<StorageImpl*>(twin));
}

c10::DataPtr memory_of(StorageImpl* twin) {
  c10::raw::intrusive_ptr::incref(twin);
  return {twin->mutable_data(), twin, &drop, DEVICE};
}

Storage cpu_storage(size_t bytes) {
  return Storage(Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), /*resizable=*/true);
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override { return memory_of(cpu_storage(bytes).unsafeGetStorageImpl()); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
} memory;

Storage twin_of(const Storage& storage) {
  auto* context = storage.data_ptr().get_context();
  TORCH_INTERNAL_ASSERT(context != nullptr, "a storage of the device without a twin");
  return Storage(c10::intrusive_ptr<StorageImpl>::reclaim_copy(static_cast<StorageImpl*>(context)));
}

/// After a CPU kernel has resized the twin, the storage takes its memory and size.
void refresh(const Storage& storage, const Storage& twin) {
  if (storage.data() != twin.data() || storage.nbytes() != twin.nbytes()) {
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(memory_of(twin.unsafeGetStorageImpl()));
    storage.unsafeGetStorageImpl()->set_nbytes(twin.nbytes());
  }
}

// ---------------------------------------------------------------- random numbers

/// A generator of the device; it draws the stream of a CPU generator with the same seed.
struct Generator final : at::CPUGeneratorImpl {
  explicit Generator(uint64_t seed = c10::default_rng_seed_val) : at::CPUGeneratorImpl(seed) {
    device_ = DEVICE;
    key_set_ = DispatchKeySet(DispatchKey::PrivateUse1);
  }

 private:
  Generator* clone_impl() const override {
    auto* copy = new Generator();
    copy->set_state(*get_state());
    return copy;
  }
};

const at::Generator& default_generator() {
  static const at::Generator generator = at::make_generator<Generator>();
  return generator;
}

/// Whether draws without a generator of the caller's use the default generator of the CPU. A run on the CPU has one
/// stream for all its noise; with this, a run on the device has the same.
const bool ONE_STREAM = std::getenv("TWIN_ONE_STREAM") != nullptr;

/// CPU kernels draw from the default generator of the CPU. During the call it has the state of the device's generator.
struct Exchange {
  at::CPUGeneratorImpl *cpu, *own;

  explicit Exchange(const at::Generator& generator)
      : cpu(at::detail::getDefaultCPUGenerator().get<at::CPUGeneratorImpl>()),
        own(generator.get<at::CPUGeneratorImpl>()) {
    exchange();
  }
  ~Exchange() { exchange(); }

  void exchange() {
    auto engine = cpu->engine();
    auto single = cpu->next_float_normal_sample();
    auto twice = cpu->next_double_normal_sample();
    cpu->set_engine(own->engine());
    cpu->set_next_float_normal_sample(own->next_float_normal_sample());
    cpu->set_next_double_normal_sample(own->next_double_normal_sample());
    own->set_engine(engine);
    own->set_next_float_normal_sample(single);
    own->set_next_double_normal_sample(twice);
  }
};

// ---------------------------------------------------------------- operations

Tensor tensor_over(const Storage& storage, const Tensor& like, DispatchKey key) {
  auto tensor = at::detail::make_tensor<TensorImpl>(Storage(storage), DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  tensor._set_conj(like.is_conj());
  tensor._set_neg(like.is_neg());
  return tensor;
}

/// One call of a CPU kernel: converts the arguments to tensors over the twins, and the results back.
struct Call {
  const c10::OperatorHandle& op;
  std::unordered_map<const TensorImpl*, Tensor> originals;  // by the tensor over the twin
  std::unordered_map<const StorageImpl*, Storage> storages;  // by the twin
  c10::optional<at::Generator> generator;
  bool on_cpu = false;

  Storage to_cpu(const Storage& storage) {
    if (storage.device_type() != c10::kPrivateUse1) return storage;
    auto twin = twin_of(storage);
    storages.emplace(twin.unsafeGetStorageImpl(), storage);
    return twin;
  }

  Tensor to_cpu(const Tensor& tensor, bool written, bool anywhere = false) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_privateuseone()) {
      on_cpu |= !anywhere && (written || tensor.dim() > 0);
      return tensor;
    }
    TORCH_CHECK(tensor.layout() == c10::kStrided, "twin: expected a dense tensor, got ", tensor.layout());
    auto twin = tensor_over(to_cpu(tensor.storage()), tensor, DispatchKey::CPU);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) twin.unsafeGetTensorImpl()->set_wrapped_number(true);
    originals.emplace(twin.unsafeGetTensorImpl(), tensor);
    return twin;
  }

  IValue to_cpu(const IValue& value, bool written) {
    if (value.isTensor()) return to_cpu(value.toTensor(), written);
    if (value.isStorage()) return to_cpu(value.toStorage());
    if (value.isDevice() && value.toDevice().is_privateuseone()) return c10::Device(c10::kCPU);
    if (value.isGenerator()) {
      generator = value.toGenerator();
      return IValue();
    }
    if (value.isTensorList()) {
      c10::List<Tensor> twins;
      for (const Tensor& tensor : value.toTensorList()) twins.push_back(to_cpu(tensor, written));
      return twins;
    }
    if (value.isOptionalTensorList()) {  // indices, which may be on the CPU, as on CUDA
      c10::List<c10::optional<Tensor>> twins;
      for (const c10::optional<Tensor>& tensor : value.toOptionalTensorList())
        twins.push_back(tensor ? c10::make_optional(to_cpu(*tensor, false, true)) : c10::nullopt);
      return twins;
    }
    return value;
  }

  Storage to_device(const Storage& twin) {
    auto& storage = storages[twin.unsafeGetStorageImpl()];
    if (!storage) {
      auto data = memory_of(twin.unsafeGetStorageImpl());
      storage = Storage(Storage::use_byte_size_t(), twin.nbytes(), std::move(data), &memory, /*resizable=*/true);
    }
    return storage;
  }

  Tensor to_device(const Tensor& twin) {
    if (!twin.defined()) return twin;
    auto original = originals.find(twin.unsafeGetTensorImpl());
    if (original != originals.end()) return original->second;
    return tensor_over(to_device(twin.storage()), twin, DispatchKey::PrivateUse1);
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) return to_device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> tensors;
    for (const Tensor& twin : value.toTensorList()) tensors.push_back(to_device(twin));
    return tensors;
  }

  /// Gives a tensor of the device the storage and the shape that the kernel has given its counterpart.
  void follow(const Tensor& tensor, const TensorImpl* twin) {
    auto storage = to_device(twin->storage());
    refresh(storage, twin->storage());
    auto* impl = tensor.unsafeGetTensorImpl();
    if (!storage.is_alias_of(tensor.storage())) impl->set_storage_keep_dtype(storage);
    if (tensor.sizes() != twin->sizes() || tensor.strides() != twin->strides() ||
        tensor.storage_offset() != twin->storage_offset())
      impl->set_sizes_and_strides(twin->sizes(), twin->strides(), twin->storage_offset());
  }

  void run(torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const auto first = stack->size() - schema.arguments().size();
    std::vector<IValue> twins;  // kept alive until `follow` has read them
    for (size_t i = first; i < stack->size(); i++) {
      const auto* alias = schema.arguments()[i - first].alias_info();
      twins.push_back((*stack)[i] = to_cpu((*stack)[i], alias && alias->isWrite()));
    }
    TORCH_CHECK(
        !on_cpu || originals.empty(),
        "Expected all tensors to be on the same device, but found at least two devices, ", DEVICE,
        " and cpu! (in ", schema.operator_name(), ")");
    c10::optional<Exchange> exchange;
    if (op.hasTag(at::Tag::nondeterministic_seeded) && (generator || !ONE_STREAM))
      exchange.emplace(generator.value_or(default_generator()));
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    for (const auto& [twin, tensor] : originals) follow(tensor, twin);
    for (auto i = stack->size() - schema.returns().size(); i < stack->size(); i++) (*stack)[i] = to_device((*stack)[i]);
  }
};

void on_twins(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Call{op}.run(stack);
}

/// The tensor over the twin of one of the device; a tensor of the CPU as it is.
Tensor on_cpu(const Tensor& tensor) {
  return tensor.is_privateuseone() ? tensor_over(twin_of(tensor.storage()), tensor, DispatchKey::CPU) : tensor;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

void run_as(const char* name, torch::jit::Stack* stack) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  Call{op}.run(stack);
}

/// Tensors of zeros without memory get memory, as a twin must have some.
void zeros(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  run_as("aten::zeros", stack);
}

void convolution(const c10::OperatorHandle&, torch::jit::Stack* stack) {
  run_as("aten::convolution", stack);
}

/// The CPU kernel has one more argument, the shape of the bias, after the gradient, the input and the weight.
void convolution_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto first = stack->end() - op.schema().arguments().size();
  const auto num_outputs = first->toTensor().size(1);
  stack->insert(first + 3, IValue(c10::List<int64_t>({num_outputs})));
  run_as("aten::convolution_backward", stack);
}

// ---------------------------------------------------------------- the device

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::kPrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(DEVICE); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<Generator>(); }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void resizePrivateUse1Bytes(const Storage& storage, size_t bytes) const override {
    auto twin = twin_of(storage);
    at::native::resize_bytes_cpu(twin.unsafeGetStorageImpl(), bytes);
    refresh(storage, twin);
  }
};

REGISTER_ALLOCATOR(c10::kPrivateUse1, &memory)
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)
const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_twins>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {  // operations without a CPU kernel of the same name
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_efficientzerotensor", torch::CppFunction::makeFromBoxedFunction<&zeros>());
  library.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  library.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
}

TORCH_LIBRARY_IMPL(aten, Conjugate, library) {  // else a copy resolves the bit by a copy, without end
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

#define LOW(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {  // the name that the macros expect; the lists are those of CUDA
  AT_FORALL_LOWER_PRECISION_FP(LOW)
  AT_FORALL_FP32(SINGLE)
}

TORCH_LIBRARY(twin, library) {
  library.def("default_generator() -> Generator?", [] { return default_generator(); });
}

}  // namespace
