# How the lab compiles llama.cpp in half of the time: given as CMAKE_PROJECT_INCLUDE, so that CMake reads it where a project begins.
#
# Most of the time goes into the same headers for each of 200 files, and into optimising code that computes nothing. So a dozen
# files are compiled as one, and only ggml, which computes, keeps -O3. The lab's llama-server is of one version of llama.cpp;
# llama-cpp-python brings its own, of which only what Python loads is compiled, in the files that it has.
if(NOT PROJECT_NAME STREQUAL "llama.cpp" OR CMAKE_VERSION VERSION_LESS 3.19)
  return()
endif()

function(autospec_less_optimised)
  foreach(target cpp-httplib llama llama-common llama-common-base mtmd server-context llama-server-impl llama-server)
    if(TARGET ${target} AND NOT MSVC)
      target_compile_options(${target} PRIVATE -O1)
    endif()
  endforeach()
endfunction()

function(autospec_many_files_as_one)
  # llama.cpp does so itself with its models. The server's files are large: one batch of them would be waited for at the end.
  set_target_properties(llama-common mtmd PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
  set_target_properties(server-context llama-server-impl PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 3)
  # These do not compile together with others.
  set_source_files_properties(${llama.cpp_SOURCE_DIR}/common/json.cpp
    TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  file(GLOB helpers ${llama.cpp_SOURCE_DIR}/tools/mtmd/mtmd-helper*.cpp)
  set_source_files_properties(${helpers} TARGET_DIRECTORY mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
endfunction()

# Deferred to the end of llama.cpp's own file, where all targets are known.
cmake_language(DEFER CALL autospec_less_optimised)
if(CMAKE_PROJECT_NAME STREQUAL "llama_cpp")
  # llama-cpp-python switches on what only llama.cpp's programs need: half of what would be compiled.
  set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)
else()
  cmake_language(DEFER CALL autospec_many_files_as_one)
endif()
