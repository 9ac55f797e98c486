// hasten._native: the engine as Python sees it (the types are in src/hasten/_native.pyi). Model is a class of nanobind's; run and run_list, which
// must be fast, are plain CPython methods over numpy's C interface: nanobind's own caster of arrays takes longer than a small model.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>
#include <vector>

#include <numpy/arrayobject.h>

#include "hasten.h"

namespace nb = nanobind;

namespace {

struct Type {
    hasten_type type;
    int number;
    size_t size;
    const char *name;
};

constexpr Type TYPES[] = {
    {HASTEN_F32, NPY_FLOAT32, 4, "float32"}, {HASTEN_U8, NPY_UINT8, 1, "uint8"}, {HASTEN_I8, NPY_INT8, 1, "int8"},
    {HASTEN_I32, NPY_INT32, 4, "int32"},     {HASTEN_I64, NPY_INT64, 8, "int64"},
};

// A model whose weights and working memory are no larger runs with Python's lock held. To give it up and take it back is 30 to 60 ns, beside 120 ns for all of
// a call without it; and what fits in so little memory is done long before the 5 ms after which Python itself would let another thread in.
constexpr size_t BRIEF = 16 << 10;

[[noreturn]] void fail(PyObject *kind, const std::string &what) {
    PyErr_SetString(kind, what.c_str());
    throw nb::python_error();
}

void check(hasten_status status) {
    if (status == HASTEN_OK) return;
    fail(status == HASTEN_UNSUPPORTED ? PyExc_NotImplementedError : status == HASTEN_NO_MEMORY ? PyExc_MemoryError : PyExc_ValueError, hasten_last_error());
}

std::string text(PyObject *string) { return nb::cast<std::string>(nb::handle(string)); }

std::string shape_text(const npy_intp *dims, int rank) {
    std::string all = "[";
    for (int i = 0; i < rank; i++) all += (i > 0 ? ", " : "") + (dims[i] < 0 ? std::string("N") : std::to_string(dims[i]));
    return all + "]";
}

struct Port {
    nb::object name;
    const Type *type;
    int rank;
    bool batched;
    npy_intp dims[HASTEN_MAX_DIMS];

    explicit Port(const hasten_port &port) : name(nb::steal(PyUnicode_InternFromString(port.name))), type(nullptr), rank(port.rank) {
        if (!name.is_valid()) throw nb::python_error();
        for (const Type &known : TYPES)
            if (known.type == port.type) type = &known;
        if (type == nullptr || rank < 0 || rank > HASTEN_MAX_DIMS) fail(PyExc_ValueError, "the plan has a port of unknown type or rank");
        batched = rank > 0 && port.dims[0] < 0;
        size_t bytes = type->size;
        for (int i = 0; i < rank; i++) {
            dims[i] = static_cast<npy_intp>(port.dims[i]);
            if (i > 0 || !batched) bytes *= static_cast<size_t>(dims[i]);
        }
        if (bytes != port.bytes) fail(PyExc_ValueError, "the plan has a port whose size is not that of its shape");
    }

    std::string expected() const { return std::string(type->name) + " " + shape_text(dims, rank); }

    nb::tuple described() const {
        nb::list shape;
        for (int i = 0; i < rank; i++) shape.append(static_cast<Py_ssize_t>(dims[i]));
        return nb::make_tuple(name, type->name, nb::tuple(shape));
    }
};

// References and addresses of a call's arrays; no allocation for up to eight of them.
class Arrays {
public:
    explicit Arrays(size_t size) {
        if (size > HERE) {
            more_held.reset(new PyObject *[size]);
            more_at.reset(new void *[size]);
            held = more_held.get();
            at = more_at.get();
        }
    }
    ~Arrays() {
        for (size_t i = 0; i < count; i++) Py_DECREF(held[i]);
    }
    Arrays(const Arrays &) = delete;
    Arrays &operator=(const Arrays &) = delete;

    void add(PyObject *owned) {
        held[count] = owned;
        at[count++] = PyArray_DATA(reinterpret_cast<PyArrayObject *>(owned));
    }

    void **addresses() { return at; }
    PyObject *operator[](size_t i) const { return held[i]; }

private:
    static constexpr size_t HERE = 8;
    PyObject *here_held[HERE];
    void *here_at[HERE];
    std::unique_ptr<PyObject *[]> more_held;
    std::unique_ptr<void *[]> more_at;
    PyObject **held = here_held;
    void **at = here_at;
    size_t count = 0;
};

class Model {
public:
    Model(const char *path, const hasten_options &options) {
        hasten_status status;
        {
            nb::gil_scoped_release release;
            status = hasten_load(path, &options, &handle);
        }
        begin(status);
    }

    // The engine copies what is not aligned; else the bytes, which never change, are kept.
    Model(nb::bytes data, const hasten_options &options) : memory(data) {
        hasten_status status;
        const void *at = data.data();
        const size_t size = data.size();
        {
            nb::gil_scoped_release release;
            status = hasten_load_memory(at, size, &options, &handle);
        }
        if (reinterpret_cast<uintptr_t>(at) % 64 != 0) memory.reset();
        begin(status);
    }

    ~Model() { hasten_free(handle); }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    PyObject *run(PyObject *feeds) {
        nb::object made;
        if (!PyDict_Check(feeds)) {  // another Mapping
            if (PyObject_HasAttrString(feeds, "keys") == 0)
                fail(PyExc_TypeError, std::string("run takes arrays by input name, not ") + Py_TYPE(feeds)->tp_name + "; run_list takes them in order");
            made = nb::steal(PyDict_New());
            if (!made.is_valid() || PyDict_Update(made.ptr(), feeds) != 0) throw nb::python_error();
            feeds = made.ptr();
        }
        Arrays in(inputs.size()), out(outputs.size());
        npy_intp batch = -1;
        for (const Port &port : inputs) {
            PyObject *value = PyDict_GetItemWithError(feeds, port.name.ptr());
            if (value == nullptr) refuse_names(feeds);
            in.add(taken(port, value, &batch));
        }
        if (PyDict_GET_SIZE(feeds) != static_cast<Py_ssize_t>(inputs.size())) refuse_names(feeds);
        call(in, out, batch);
        nb::object found = nb::steal(PyDict_New());
        if (!found.is_valid()) throw nb::python_error();
        for (size_t i = 0; i < outputs.size(); i++)
            if (PyDict_SetItem(found.ptr(), outputs[i].name.ptr(), out[i]) != 0) throw nb::python_error();
        return found.release().ptr();
    }

    PyObject *run_list(PyObject *arrays) {
        const bool tuple = PyTuple_Check(arrays);
        if (!tuple && !PyList_Check(arrays)) fail(PyExc_TypeError, std::string("run_list takes a list or tuple of arrays, not ") + Py_TYPE(arrays)->tp_name);
        const Py_ssize_t given = tuple ? PyTuple_GET_SIZE(arrays) : PyList_GET_SIZE(arrays);
        if (given != static_cast<Py_ssize_t>(inputs.size()))
            fail(PyExc_ValueError, std::to_string(given) + " arrays came, the model takes " + names(inputs));
        Arrays in(inputs.size()), out(outputs.size());
        npy_intp batch = -1;
        for (size_t i = 0; i < inputs.size(); i++) {
            // A list can be changed by the code that a conversion of an earlier array runs.
            if (!tuple && PyList_GET_SIZE(arrays) != given) fail(PyExc_ValueError, "the list changed while it was read");
            const auto index = static_cast<Py_ssize_t>(i);
            in.add(taken(inputs[i], tuple ? PyTuple_GET_ITEM(arrays, index) : PyList_GET_ITEM(arrays, index), &batch));
        }
        call(in, out, batch);
        nb::object found = nb::steal(PyList_New(static_cast<Py_ssize_t>(outputs.size())));
        if (!found.is_valid()) throw nb::python_error();
        for (size_t i = 0; i < outputs.size(); i++) PyList_SET_ITEM(found.ptr(), static_cast<Py_ssize_t>(i), Py_NewRef(out[i]));
        return found.release().ptr();
    }

    // (kernel, products of one sample, seconds of all calls) of each step.
    nb::list profile(nb::dict feeds, int32_t calls) {
        if (calls < 1) fail(PyExc_ValueError, "calls is " + std::to_string(calls) + ", must be 1 or more");
        Arrays in(inputs.size()), out(outputs.size());
        npy_intp batch = -1;
        for (const Port &port : inputs) {
            PyObject *value = PyDict_GetItemWithError(feeds.ptr(), port.name.ptr());
            if (value == nullptr) refuse_names(feeds.ptr());
            in.add(taken(port, value, &batch));
        }
        make_outputs(out, &batch);
        std::vector<double> seconds(static_cast<size_t>(description.steps), 0.0);
        hasten_status status = HASTEN_OK;
        {
            nb::gil_scoped_release release;
            for (int32_t i = 0; i < calls && status == HASTEN_OK; i++)
                status = hasten_profile(handle, in.addresses(), out.addresses(), static_cast<int32_t>(batch), seconds.data());
        }
        check(status);
        nb::list found;
        for (int32_t i = 0; i < description.steps; i++) {
            hasten_step_info step;
            check(hasten_step(handle, i, &step));
            found.append(nb::make_tuple(step.kernel, step.products, seconds[static_cast<size_t>(i)]));
        }
        return found;
    }

    std::vector<Port> inputs, outputs;
    hasten_description description{};

private:
    void begin(hasten_status status) {
        check(status);
        try {
            check(hasten_describe(handle, &description));
            hasten_port port;
            for (int32_t i = 0; i < description.inputs; i++) check(hasten_input(handle, i, &port)), inputs.emplace_back(port);
            for (int32_t i = 0; i < description.outputs; i++) check(hasten_output(handle, i, &port)), outputs.emplace_back(port);
        } catch (...) {
            hasten_free(handle);
            throw;
        }
        for (const Port &input : inputs) batched = batched || input.batched;
    }

    static std::string names(const std::vector<Port> &ports) {
        std::string all;
        for (const Port &port : ports) all += (all.empty() ? "'" : ", '") + text(port.name.ptr()) + "'";
        return all;
    }

    [[noreturn]] void refuse_names(PyObject *feeds) const {
        if (PyErr_Occurred()) throw nb::python_error();
        nb::object given = nb::steal(PySequence_List(feeds));
        nb::object shown = given.is_valid() ? nb::steal(PyObject_Repr(given.ptr())) : nb::object();
        if (!shown.is_valid()) throw nb::python_error();
        fail(PyExc_ValueError, "arrays came for " + text(shown.ptr()) + ", the model takes " + names(inputs));
    }

    // The array as the engine reads it: itself where it is dense, else a copy. `batch` is that of the inputs so far, -1 before the first.
    PyObject *taken(const Port &port, PyObject *value, npy_intp *batch) const {
        if (!PyArray_Check(value)) refuse(port, std::string("is ") + Py_TYPE(value)->tp_name, "give a numpy array");
        auto *array = reinterpret_cast<PyArrayObject *>(value);
        if (PyArray_TYPE(array) != port.type->number && !PyArray_EquivTypenums(PyArray_TYPE(array), port.type->number)) refuse_array(port, array);
        if (PyArray_ISBYTESWAPPED(array)) refuse_array(port, array);
        const npy_intp *shape = PyArray_DIMS(array);
        if (PyArray_NDIM(array) != port.rank) refuse_array(port, array);
        for (int i = port.batched ? 1 : 0; i < port.rank; i++)
            if (shape[i] != port.dims[i]) refuse_array(port, array);
        if (port.batched) {
            if (*batch < 0) *batch = shape[0];
            if (shape[0] != *batch) refuse_batch(port, shape[0], *batch);
        }
        if (PyArray_ISCARRAY_RO(array)) return Py_NewRef(value);
        PyObject *copy = PyArray_NewCopy(array, NPY_CORDER);
        if (copy == nullptr) throw nb::python_error();
        return copy;
    }

    [[noreturn]] static void refuse(const Port &port, const std::string &is, const std::string &what_to_do) {
        fail(PyExc_ValueError, "input '" + text(port.name.ptr()) + "' " + is + ", expected " + port.expected() + "; " + what_to_do);
    }

    [[noreturn]] static void refuse_array(const Port &port, PyArrayObject *array) {
        nb::object type = nb::steal(PyObject_Str(reinterpret_cast<PyObject *>(PyArray_DESCR(array))));
        if (!type.is_valid()) throw nb::python_error();
        const bool right = PyArray_TYPE(array) == port.type->number && !PyArray_ISBYTESWAPPED(array);
        refuse(port, "is " + text(type.ptr()) + " " + shape_text(PyArray_DIMS(array), PyArray_NDIM(array)),
               right ? "N is the batch" : std::string("convert it with .astype(\"") + port.type->name + "\")");
    }

    [[noreturn]] static void refuse_batch(const Port &port, npy_intp got, npy_intp batch) {
        fail(PyExc_ValueError, "input '" + text(port.name.ptr()) + "' has a batch of " + std::to_string(got) + ", the inputs before it of " + std::to_string(batch));
    }

    void make_outputs(Arrays &out, npy_intp *batch) {
        if (!batched) *batch = 1;
        if (*batch < 1 || *batch > description.max_batch)
            fail(PyExc_ValueError, "a batch of " + std::to_string(*batch) + " came, the model was loaded for 1 to " + std::to_string(description.max_batch));
        for (const Port &port : outputs) {
            npy_intp dims[HASTEN_MAX_DIMS];
            for (int i = 0; i < port.rank; i++) dims[i] = port.dims[i];
            if (port.batched) dims[0] = *batch;
            PyObject *array = PyArray_SimpleNew(port.rank, dims, port.type->number);
            if (array == nullptr) throw nb::python_error();
            out.add(array);
        }
    }

    void call(Arrays &in, Arrays &out, npy_intp batch) {
        make_outputs(out, &batch);
        hasten_status status;
        if (description.weights + description.arena <= BRIEF) {
            status = hasten_run(handle, in.addresses(), out.addresses(), static_cast<int32_t>(batch));
        } else {
            nb::gil_scoped_release release;
            status = hasten_run(handle, in.addresses(), out.addresses(), static_cast<int32_t>(batch));
        }
        check(status);
    }

    hasten_model *handle = nullptr;
    nb::object memory;
    bool batched = false;
};

// A method of one argument without nanobind's dispatch.
template <PyObject *(Model::*method)(PyObject *)>
PyObject *plain(PyObject *self, PyObject *argument) noexcept {
    try {
        return (nb::inst_ptr<Model>(self)->*method)(argument);
    } catch (nb::python_error &error) {
        error.restore();
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
    } catch (const std::exception &error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

PyMethodDef METHODS[] = {
    {"run", plain<&Model::run>, METH_O, "Arrays by input name to arrays by output name."},
    {"run_list", plain<&Model::run_list>, METH_O, "Arrays in the order of `inputs` to arrays in the order of `outputs`."},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot SLOTS[] = {{Py_tp_methods, METHODS}, {0, nullptr}};

nb::tuple described(const std::vector<Port> &ports) {
    nb::list all;
    for (const Port &port : ports) all.append(port.described());
    return nb::tuple(all);
}

Model *loaded(nb::object path, int32_t threads, int32_t max_batch) {
    PyObject *encoded = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw nb::python_error();
    const nb::object held = nb::steal(encoded);
    return new Model(PyBytes_AS_STRING(encoded), {threads, max_batch});
}

}  // namespace

NB_MODULE(_native, m) {
    if (_import_array() < 0) throw nb::python_error();
    nb::set_leak_warnings(false);  // a model that a program keeps until its end is no leak
    nb::class_<Model>(m, "Model", nb::type_slots(SLOTS))
        .def_static("load", &loaded, nb::arg("path"), nb::arg("threads") = 1, nb::arg("max_batch") = 1)
        .def_static(
            "from_bytes", [](nb::bytes data, int32_t threads, int32_t max_batch) { return new Model(data, {threads, max_batch}); }, nb::arg("data"),
            nb::arg("threads") = 1, nb::arg("max_batch") = 1)
        .def("profile", &Model::profile, nb::arg("feeds"), nb::arg("calls") = 1)
        .def_prop_ro("inputs", [](const Model &model) { return described(model.inputs); })
        .def_prop_ro("outputs", [](const Model &model) { return described(model.outputs); })
        .def_prop_ro("threads", [](const Model &model) { return model.description.threads; })
        .def_prop_ro("max_batch", [](const Model &model) { return model.description.max_batch; })
        .def_prop_ro("steps", [](const Model &model) { return model.description.steps; })
        .def_prop_ro("weights", [](const Model &model) { return model.description.weights; })
        .def_prop_ro("arena", [](const Model &model) { return model.description.arena; })
        .def_prop_ro("isa", [](const Model &model) { return model.description.isa; });
    m.def("abi", &hasten_abi);
    m.def("peak", [](const std::string &types) { return hasten_peak(types.c_str()); }, nb::arg("types"), nb::call_guard<nb::gil_scoped_release>());
    m.def("isa", &hasten_isa);
}
